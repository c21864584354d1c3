#include "parallel/cp_cache.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/parallel.h"
#include "parallel/comm_array.h"
#include "quant/cache_write.h"
#include "quant/rows.h"
#include "quant/token_stream.h"

namespace sparsespan {

namespace {

constexpr std::string_view kOp = "gather_kv_and_cache";

// One cache and the place of its tokens in the gathered stream.
struct Side {
  PagedCache cache;
  ScaleRule rule = ScaleRule::official;
  std::int64_t offset = 0;  // bytes from a gathered token's first byte

  TokenCodec stream(std::byte* data, std::int64_t tokens, std::int64_t width) const {
    return TokenCodec(token_stream(cache.layout, data + offset, tokens, width), rule);
  }
};

void require_part(std::string_view argument, const Tensor& x, std::int64_t rows, std::int64_t width) {
  require_dtype(kOp, argument, x, {DType::float32, DType::bfloat16});
  require_shape(kOp, argument, x, {rows, width}, "[local rows, width]");
  require_inner_contiguous(kOp, argument, x);
}

Tensor as_tensor(Ints& values) {
  Tensor t;
  t.data = values.data();
  t.dtype = DType::int64;
  t.rank = 1;
  t.shape[0] = static_cast<std::int64_t>(values.size());
  t.strides[0] = 1;
  t.present = true;
  return t;
}

// Slot of every row of the batch, -1 for pad rows; as [T].
Ints batch_slots(const CpPlan& plan, const Tensor& slot_mapping) {
  require_int(kOp, "slot_mapping", slot_mapping);
  require_shape(kOp, "slot_mapping", slot_mapping, {kAny}, "[T]");
  const CpBatch& b = plan.batch();
  if (slot_mapping.shape[0] != b.rows() && slot_mapping.shape[0] != b.pad_to) {
    refuse_value(kOp, "slot_mapping", "has ", slot_mapping.shape[0], " entries, needs one for each of the plan's ",
                 b.rows(), " rows");
  }
  const IntView<1> slots(slot_mapping);
  Ints out(b.rows(), -1);
  for (std::int64_t s = 0; s < b.requests(); ++s) {
    for (std::int64_t i = b.cu[s]; i < b.cu[s] + b.real[s]; ++i) out[i] = slots(i);
  }
  return out;
}

// Ranks may keep a row in different slots, but must agree on layouts, rules and which rows are skipped.
std::uint64_t salt_of(const GatherKvParams& p, const Ints& slots) {
  std::uint64_t salt = 3 + (static_cast<std::uint64_t>(p.layout) << 8U) + (static_cast<std::uint64_t>(p.rule) << 16U);
  if (p.k_index) {
    salt += (static_cast<std::uint64_t>(p.index_layout) + 1) << 24U;
    salt += static_cast<std::uint64_t>(p.index_rule) << 32U;
  }
  for (std::size_t i = 0; i < slots.size(); ++i) {
    if (slots[i] < 0) salt = (salt ^ i) * 0x100000001B3ULL;
  }
  return salt;
}

Side side_of(std::string_view argument, const Tensor& cache, KvLayout layout, std::int64_t page_size, ScaleRule rule,
             bool index, std::initializer_list<const Tensor*> inputs) {
  require_layout_kind(kOp, index ? "caches.index_layout" : "caches.layout", layout, index);
  Side side{require_paged_cache(kOp, argument, cache, layout, page_size), rule, 0};
  require_writable(kOp, argument, cache, inputs);
  return side;
}

class KvGather {
 public:
  KvGather(const Communicator& comm, const CpPlan& plan, const GatherKvParams& p) : p_(p) {
    require_ranks_of(kOp, plan, comm);
    require_local_rows(kOp, "c_kv", plan, comm.rank(), p.c_kv);
    require_part("c_kv", p.c_kv, p.c_kv.shape[0], kLatentDim);
    require_part("k_pe", p.k_pe, p.c_kv.shape[0], kRopeDim);
    if (p.k_index) require_part("k_index", p.k_index, p.c_kv.shape[0], kIndexDim);
    if (static_cast<bool>(p.k_index) != static_cast<bool>(p.index_cache)) {
      refuse_value(kOp, p.k_index ? "caches.index" : "k_index", "is None, needs ",
                   p.k_index ? "the layer's index cache: k_index is given"
                             : "the layer's index keys: its caches have an index cache");
    }
    slots_ = batch_slots(plan, p.slot_mapping);
    salt_ = salt_of(p, slots_);
    const auto inputs = {&p.c_kv, &p.k_pe, &p.k_index, &p.slot_mapping};
    latent_ = side_of("caches.kv", p.kv_cache, p.layout, p.page_size, p.rule, false, inputs);
    width_ = layout_info(p.layout).bytes_per_token();
    if (p.k_index) {
      index_ = side_of("caches.index", p.index_cache, p.index_layout, p.page_size, p.index_rule, true,
                       {&p.c_kv, &p.k_pe, &p.k_index, &p.slot_mapping, &p.kv_cache});
      index_.offset = width_;
      width_ += layout_info(p.index_layout).bytes_per_token();
    }
    local_ = plan.slot_mapping(p.slot_mapping, comm.rank(), -1);
    check_data();
  }

  std::int64_t width() const { return width_; }
  std::uint64_t salt() const { return salt_; }

  // This rank's tokens as the caches store them; zeros for what is not written anywhere.
  void encode(std::byte* data, std::int64_t tokens) const {
    const TokenCodec latent = latent_.stream(data, tokens, width_);
    const auto rows = static_cast<std::int64_t>(local_.size());
    parallel_rows(tokens, kKvDim, p_.threads, [&](std::int64_t t, int) {
      if (t >= rows || local_[t] < 0) {
        std::memset(data + t * width_, 0, static_cast<std::size_t>(width_));
        return;
      }
      float values[kKvDim];
      copy_floats(p_.c_kv, t, values);
      copy_floats(p_.k_pe, t, values + kLatentDim);
      latent.encode(t, values);
      if (!p_.k_index) return;
      copy_floats(p_.k_index, t, values);
      index_.stream(data, tokens, width_).encode(t, values);
    });
  }

  // Row i of the batch stands at gathered token place[i].
  void scatter(std::byte* data, const Ints& place) const {
    parallel_rows(static_cast<std::int64_t>(slots_.size()), kKvDim, p_.threads, [&](std::int64_t i, int) {
      if (slots_[i] < 0) return;
      store(latent_, data, place[i], slots_[i]);
      if (p_.k_index) store(index_, data, place[i], slots_[i]);
    });
  }

 private:
  static void copy_floats(const Tensor& x, std::int64_t t, float* to) {
    const float* from = load_floats(x, t, 0, x.shape[1], to);
    if (from != to) std::copy_n(from, x.shape[1], to);
  }

  void store(const Side& side, std::byte* data, std::int64_t token, std::int64_t slot) const {
    copy_token(side.stream(data, token + 1, width_), token, TokenCodec(side.cache), slot);
  }

  void check_data() {
    if (p_.validate != Validate::full) return;
    const std::int64_t room =
        p_.k_index ? std::min(latent_.cache.slots(), index_.cache.slots()) : latent_.cache.slots();
    require_slots(kOp, as_tensor(slots_), room);
    const Tensor local = as_tensor(local_);
    if (layout_info(p_.layout).tile() != 0) require_finite(kOp, "c_kv", p_.c_kv, local, p_.threads);
    if (p_.k_index && layout_info(p_.index_layout).tile() != 0) {
      require_finite(kOp, "k_index", p_.k_index, local, p_.threads);
    }
  }

  GatherKvParams p_;
  Ints slots_;  // [T] -1 for pad rows and skipped rows
  Ints local_;  // [n] of this rank's rows: -1 also for copies of replicated rows that do not count
  Side latent_, index_;
  std::int64_t width_ = 0;
  std::uint64_t salt_ = 0;
};

}  // namespace

std::shared_ptr<CpWork> igather_kv_and_cache(Communicator& comm, const PlanPtr& plan, const GatherKvParams& p,
                                             CommOptions options) {
  const auto gather = std::make_shared<const KvGather>(comm, *plan, p);
  const std::int64_t rows = plan->padded_len();
  const CommArray send(kOp, DType::uint8, {rows, gather->width()});
  const CommArray recv(kOp, DType::uint8, {checked_product(kOp, "comm", rows, comm.size()), gather->width()});
  gather->encode(send.data<std::byte>(), rows);
  options.plan = plan_stamp(*plan, gather->salt());
  auto work = comm.iall_gather(send.tensor(), recv.tensor(), touching(options, send, recv));
  return std::make_shared<CpWork>(std::move(work), [recv, gather, keep = options.keep, place = plan->restore_index()] {
    gather->scatter(recv.data<std::byte>(), place);
  });
}

}  // namespace sparsespan
