#include "parallel/dcp_decode.h"

#include <cstring>

#include "attention/checks.h"
#include "attention/kv_rows.h"
#include "attention/sparse_mla.h"
#include "core/parallel.h"
#include "parallel/comm_array.h"

namespace sparsespan {

namespace {

constexpr std::string_view kOp = "dcp_decode";
constexpr std::string_view kPartial = "dcp_partial";
constexpr std::int64_t kLanes = 8;

// What dcp_decode and dcp_partial check alike, before anything moves. Returns the width of a query.
std::int64_t check_attention(std::string_view op, const DcpLayout& layout, const DcpPartialParams& p) {
  const std::int64_t dim = require_queries(op, p.q, p.q_pe, p.d_v);
  if (p.d_v < 1 || p.d_v > dim) refuse_value(op, "d_v", "is ", p.d_v, ", needs 1..", dim, " (the width of q)");
  require_scale(op, p.sm_scale);
  const KvRows rows(op, "kv_cache", p.kv_cache, p.kv_layout, layout.page_size(), dim);
  require_shape(op, "indices", squeeze_head_axis(op, "indices", p.selection.indices), {p.q.shape[0], kAny}, "[T, K]");
  if (p.lanes && kLanes % layout.world_size() != 0) {
    refuse_value(op, "lanes", "is True with ", layout.world_size(),
                 " ranks, needs 1, 2, 4 or 8: each of the 8 lanes lies on one rank; pass lanes=False");
  }
  return dim;
}

DcpKeys find_keys(std::string_view op, const DcpLayout& layout, std::int64_t rank, const DcpPartialParams& p) {
  const PagedCache cache = require_paged_cache(op, "kv_cache", p.kv_cache, p.kv_layout, layout.page_size());
  return {op, layout, rank, p.selection, cache, p.lanes, p.validate, p.threads};
}

void attend(const DcpLayout& layout, const DcpKeys& keys, const DcpPartialParams& p, const Tensor& sink) {
  const Scratch<float> max_logits(p.q.shape[0] * p.q.shape[1]);
  SparseMlaParams a{.q = p.q, .q_pe = p.q_pe, .kv = p.kv_cache};
  a.layout = p.kv_layout;
  a.page_size = layout.page_size();
  a.indices = keys.slots();
  a.topk_length = keys.counts();
  a.lane_of = keys.lanes();
  a.attn_sink = sink;
  a.sm_scale = p.sm_scale;
  a.d_v = p.d_v;
  a.out = p.out;
  a.lse = p.lse;
  a.max_logits = p.lse;
  a.max_logits.data = max_logits.data();
  a.max_logits.strides = {p.q.shape[1], 1};
  a.validate = Validate::trusted;  // the slots were made here
  a.threads = p.threads;
  sparse_mla(a);
}

// Rows of [T, heads, d] one behind the other: to[t * heads * width + head * width + column...].
struct HeadBlock {
  std::byte* to;
  std::int64_t row_bytes;   // between rows t
  std::int64_t head_bytes;  // between heads
};

void copy_heads(const Tensor& x, const HeadBlock& block, int threads) {
  const std::int64_t size = size_of(x.dtype);
  const auto* from = static_cast<const std::byte*>(x.data);
  const std::int64_t bytes = x.shape[2] * size;
  if (bytes == 0) return;
  parallel_rows(x.shape[0], x.shape[1] * x.shape[2], threads, [&](std::int64_t t, int) {
    for (std::int64_t h = 0; h < x.shape[1]; ++h) {
      std::memcpy(block.to + t * block.row_bytes + h * block.head_bytes,
                  from + (t * x.strides[0] + h * x.strides[1]) * size, static_cast<std::size_t>(bytes));
    }
  });
}

// q | q_pe in one array.
void copy_queries(const Tensor& q, const Tensor& q_pe, const HeadBlock& block, int threads) {
  copy_heads(q, block, threads);
  if (!q_pe) return;
  copy_heads(q_pe, {block.to + q.shape[2] * size_of(q.dtype), block.row_bytes, block.head_bytes}, threads);
}

class Decode {
 public:
  Decode(Communicator& comm, const DcpLayout& layout, const DcpDecodeParams& p)
      : comm_(comm), layout_(layout), p_(p), ranks_(layout.world_size()) {}

  void run() {
    check_group();
    DcpPartialParams part = partial();
    const std::int64_t dim = check_attention(kOp, layout_, part);
    check_heads();
    const DcpKeys keys = find_keys(kOp, layout_, comm_.rank(), part);
    if (ranks_ == 1 && p_.head_pad == 1) {  // nothing to gather, nothing to merge
      part.out = p_.combine.out;
      part.lse = p_.combine.lse;
      attend(layout_, keys, part, p_.combine.attn_sink);
      return;
    }
    DcpCombineParams combine = p_.combine;
    combine.comm.plan = plan_hash(plan());
    const CommArray q = gathered_queries(dim, combine.comm);
    const std::int64_t padded = q.tensor().shape[1];
    const Scratch<float> out(rows() * padded * p_.d_v);
    const Scratch<float> lse(rows() * padded);
    part.q = q.tensor();
    part.q_pe = Tensor{};
    part.out = array_of(out.data(), {rows(), padded, p_.d_v});
    part.lse = array_of(lse.data(), {rows(), padded});
    attend(layout_, keys, part, Tensor{});
    combine.partial_out = part.out;
    combine.partial_lse = part.lse;
    combine.partial_out.shape[1] = combine.partial_lse.shape[1] = heads();
    dcp_combine(comm_, combine);
  }

 private:
  std::int64_t rows() const { return p_.q.shape[0]; }
  std::int64_t heads() const { return p_.q.shape[1] * (p_.replicate_q ? 1 : ranks_); }  // of all ranks

  bool lanes() const {
    if (p_.lanes) return *p_.lanes;
    return p_.combine.combine == DcpCombine::a2a && p_.combine.payload == DcpPayload::fp32 && kLanes % ranks_ == 0;
  }

  // Everything that the ranks must agree on; the layout's own fingerprint is made of the same text.
  std::string plan() const {
    return detail::join(layout_.text(), " dcp_decode(combine=", name_of(p_.combine.combine),
                        ", payload=", name_of(p_.combine.payload), ", lanes=", lanes(), ", heads=", heads(),
                        ", replicate_q=", p_.replicate_q, ", sm_scale=", p_.sm_scale, ")");
  }

  void check_group() const {
    if (comm_.size() == ranks_) return;
    refuse_value(kOp, "comm", "has ", comm_.size(), " ranks, needs ", ranks_, " as ", layout_.text(), " has");
  }

  void check_heads() const {
    if (p_.head_pad < 1) refuse_value(kOp, "head_pad", "is ", p_.head_pad, ", needs at least 1");
    if (heads() % ranks_ != 0) {
      refuse_value(kOp, "q", "has ", heads(), " heads, needs a multiple of the ", ranks_,
                   " ranks with replicate_q: the heads of all of them");
    }
    const std::int64_t mine = heads() / ranks_;
    require_sink(kOp, p_.combine.attn_sink, mine);
    const DcpSelection& s = p_.selection;
    require_outputs(kOp, {&p_.combine.out, &p_.combine.lse, nullptr}, rows(), mine, p_.d_v,
                    {&p_.q, &p_.q_pe, &p_.kv_cache, &s.indices, &s.topk_length, &s.context_lens, &s.row_to_request,
                     &s.block_table, &p_.combine.attn_sink});
  }

  DcpPartialParams partial() const {
    return {.q = p_.q,
            .q_pe = p_.q_pe,
            .kv_cache = p_.kv_cache,
            .kv_layout = p_.kv_layout,
            .selection = p_.selection,
            .sm_scale = p_.sm_scale,
            .d_v = p_.d_v,
            .lanes = lanes(),
            .validate = p_.validate,
            .threads = p_.combine.threads};
  }

  static Tensor array_of(float* data, std::initializer_list<std::int64_t> shape) {
    Tensor t;
    t.data = data;
    t.dtype = DType::float32;
    t.rank = static_cast<int>(shape.size());
    std::copy(shape.begin(), shape.end(), t.shape.begin());
    std::int64_t stride = 1;
    for (int axis = t.rank - 1; axis >= 0; --axis) {
      t.strides[axis] = stride;
      stride *= t.shape[axis];
    }
    t.writable = t.present = true;
    return t;
  }

  // All heads' queries [T, padded heads, dim], those of rank 0 first; zeros behind the last.
  CommArray gathered_queries(std::int64_t dim, const CommOptions& options) const {
    const std::int64_t padded = round_up(heads(), p_.head_pad);
    const std::int64_t bytes = dim * size_of(p_.q.dtype);
    const int threads = p_.combine.threads;
    CommArray all(kOp, p_.q.dtype, {rows(), padded, dim});
    auto* to = all.data<std::byte>();
    for (std::int64_t t = 0; t < rows() && padded > heads(); ++t) {
      std::memset(to + (t * padded + heads()) * bytes, 0, static_cast<std::size_t>((padded - heads()) * bytes));
    }
    if (p_.replicate_q) {
      copy_queries(p_.q, p_.q_pe, {to, padded * bytes, bytes}, threads);
      return all;
    }
    const std::int64_t mine = p_.q.shape[1];
    const CommArray send(kOp, p_.q.dtype, {rows(), mine, dim});
    const CommArray recv(kOp, p_.q.dtype, {ranks_ * rows(), mine, dim});
    copy_queries(p_.q, p_.q_pe, {send.data<std::byte>(), mine * bytes, bytes}, threads);
    comm_.iall_gather(send.tensor(), recv.tensor(), touching(options, send, recv))->wait();
    Tensor part = recv.tensor();
    part.shape[0] = rows();
    for (std::int64_t r = 0; r < ranks_; ++r) {
      part.data = recv.data<std::byte>() + r * rows() * mine * bytes;
      copy_heads(part, {to + r * mine * bytes, padded * bytes, bytes}, threads);
    }
    return all;
  }

  Communicator& comm_;
  const DcpLayout& layout_;
  const DcpDecodeParams& p_;
  std::int64_t ranks_;
};

}  // namespace

void dcp_decode(Communicator& comm, const DcpLayout& layout, const DcpDecodeParams& p) {
  Decode(comm, layout, p).run();
}

void dcp_partial(const DcpLayout& layout, std::int64_t rank, const DcpPartialParams& p) {
  layout.require_rank(kPartial, rank);
  check_attention(kPartial, layout, p);
  const DcpSelection& s = p.selection;
  require_outputs(
      kPartial, {&p.out, &p.lse, nullptr}, p.q.shape[0], p.q.shape[1], p.d_v,
      {&p.q, &p.q_pe, &p.kv_cache, &s.indices, &s.topk_length, &s.context_lens, &s.row_to_request, &s.block_table});
  attend(layout, find_keys(kPartial, layout, rank, p), p, Tensor{});
}

}  // namespace sparsespan
