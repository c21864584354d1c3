#include "parallel/cp_plan.h"

#include <algorithm>
#include <array>
#include <bit>
#include <utility>

#include "core/check.h"
#include "parallel/split_runs.h"

namespace sparsespan {

namespace {

constexpr std::array<std::string_view, 7> kSchemeNames = {"zigzag",     "zigzag_padded",   "ceil_chunk", "interleave",
                                                          "contiguous", "contiguous_flat", "thd_even"};
constexpr std::array<std::string_view, 4> kFlavorNames = {"native", "sglang", "vllm", "vllm_ascend"};

// Codes of local rows: a row of the batch by its id; padding of no request; padding at an offset of a request.
constexpr std::int64_t kNobody = -1;
constexpr std::int64_t pad_code(std::int64_t request, std::int64_t offset) { return -2 - ((request << 32) | offset); }

// Rows that one rank holds in the end, padding included.
std::int64_t rank_target(const CpBatch& b, std::int64_t rank, std::int64_t count, std::int64_t longest) {
  if (b.scheme == CpScheme::contiguous_flat) {
    std::int64_t whole = 0;
    for (std::int64_t s = 0; s < b.requests(); ++s) whole += b.whole[s] != 0 ? b.length(s) : 0;
    return whole + flat_share(b);
  }
  if (b.pad_to < 0) return count;
  if (b.flavor == CpFlavor::sglang) {
    if (b.scheme != CpScheme::interleave) return count;  // the padding is cut with the last request
    return b.pad_to / b.world_size + (b.pad_to % b.world_size > rank ? 1 : 0);
  }
  return std::max(longest, ceil_div(b.pad_to, b.world_size));
}

std::int64_t gather_align(const CpBatch& b) {
  if (b.flavor != CpFlavor::sglang) return 1;
  return b.scheme == CpScheme::zigzag ? 2 * b.world_size : b.world_size;
}

// 64-bit mixing in a fixed order: the same plan has the same fingerprint in every process and on every machine.
class Mixer {
 public:
  void add(std::uint64_t word) {
    state_ = (state_ ^ word) * 0x9E3779B97F4A7C15ULL;
    state_ ^= state_ >> 29;
  }
  void add(const Ints& words) {
    add(words.size());
    for (const auto w : words) add(static_cast<std::uint64_t>(w));
  }
  std::uint64_t value() const { return std::rotl(state_ * 0xBF58476D1CE4E5B9ULL, 31); }

 private:
  std::uint64_t state_ = 0x5350415253455350ULL;
};

}  // namespace

std::string_view name_of(CpScheme scheme) { return kSchemeNames[static_cast<std::size_t>(scheme)]; }
std::string_view name_of(CpFlavor flavor) { return kFlavorNames[static_cast<std::size_t>(flavor)]; }

int CpBatch::part_of(std::int64_t request, std::int64_t offset) const {
  if (!has_parts() || whole[request] != 0) return 0;
  const std::int64_t n = 2 * world_size;
  const std::int64_t length = split_len[request];
  if (scheme == CpScheme::zigzag) {
    return offset < length / n * world_size + std::min(length % n, world_size) ? 0 : 1;
  }
  return offset < ceil_div(length, n) * world_size ? 0 : 1;
}

CpPlan::CpPlan(CpBatch batch) : batch_(std::move(batch)) {
  place_rows(layout_starts());
  index_rows();
}

// Counts rows per rank and phase and lays the ranks out one behind the other. Returns where each phase starts.
std::vector<Ints> CpPlan::layout_starts() {
  const std::int64_t n = batch_.world_size;
  std::vector<Ints> cursor(2, Ints(n, 0));
  for_each_run(batch_, [&](const CpRun& run) { cursor[run.phase][run.rank] += run.count; });
  std::int64_t longest = 0;
  for (std::int64_t r = 0; r < n; ++r) longest = std::max(longest, cursor[0][r] + cursor[1][r]);
  rank_start_.assign(n + 1, 0);
  // For contiguous_flat every target is the same and costs a scan of the batch: it is asked for once.
  const bool same = batch_.scheme == CpScheme::contiguous_flat;
  std::int64_t target = 0;
  for (std::int64_t r = 0; r < n; ++r) {
    const std::int64_t count = cursor[0][r] + cursor[1][r];
    if (r == 0 || !same) target = rank_target(batch_, r, count, longest);
    rank_start_[r + 1] = rank_start_[r] + target;
    padded_len_ = std::max(padded_len_, target);
    cursor[1][r] = rank_start_[r] + cursor[0][r];
    cursor[0][r] = rank_start_[r];
  }
  padded_len_ = round_up(padded_len_, gather_align(batch_));
  if (rank_start_[n] > kMaxPlanRows || checked_product("split_plan", "gathered rows", n, padded_len_) > kMaxPlanRows) {
    refuse_value("split_plan", "world_size", "of ", n, " gives ", rank_start_[n], " local rows in all, needs at most ",
                 kMaxPlanRows);
  }
  return cursor;
}

void CpPlan::place_rows(std::vector<Ints> cursor) {
  codes_.assign(rank_start_.back(), kNobody);
  for_each_run(batch_, [&](const CpRun& run) {
    std::int64_t* out = codes_.data() + cursor[run.phase][run.rank];
    cursor[run.phase][run.rank] += run.count;
    const std::int64_t length = batch_.length(run.request);
    const std::int64_t start = batch_.cu[run.request];
    for (std::int64_t i = 0; i < run.count; ++i) {
      const std::int64_t offset = run.first + i * run.stride;
      out[i] = offset < length ? start + offset : pad_code(run.request, offset);
    }
  });
}

// Everything that is looked up per row of the batch; rank 0's copy of a replicated row is the one that counts.
void CpPlan::index_rows() {
  request_of_row_.resize(batch_.rows());
  for (std::int64_t s = 0; s < batch_.requests(); ++s) {
    std::fill(request_of_row_.begin() + batch_.cu[s], request_of_row_.begin() + batch_.cu[s + 1],
              static_cast<std::int32_t>(s));
  }
  restore_.assign(batch_.rows(), -1);
  for (std::int64_t r = batch_.world_size - 1; r >= 0; --r) {
    for (std::int64_t i = 0; i < local_rows(r); ++i) {
      const std::int64_t id = codes_[rank_start_[r] + i];
      if (id >= 0) restore_[id] = r * padded_len_ + i;
    }
  }
  Mixer mixer;
  mixer.add(static_cast<std::uint64_t>(batch_.scheme) | static_cast<std::uint64_t>(batch_.flavor) << 8U);
  mixer.add(static_cast<std::uint64_t>(batch_.pad_to));
  mixer.add(static_cast<std::uint64_t>(padded_len_));
  mixer.add(batch_.cu);
  mixer.add(batch_.prefix);
  mixer.add(batch_.real);
  for (const auto w : batch_.whole) mixer.add(w);
  mixer.add(rank_start_);
  mixer.add(codes_);
  fingerprint_ = mixer.value();
}

CpRow CpPlan::row(std::int64_t code) const {
  if (code == kNobody) return {};
  if (code < 0) {
    const std::int64_t packed = -2 - code;
    return {-1, packed >> 32, packed & 0xFFFFFFFFLL, false};
  }
  const std::int64_t s = request_of_row_[code];
  const std::int64_t offset = code - batch_.cu[s];
  return {code, s, offset, offset < batch_.real[s]};
}

bool CpPlan::operator==(const CpPlan& other) const {
  const CpBatch& a = batch_;
  const CpBatch& b = other.batch_;
  return fingerprint_ == other.fingerprint_ && a.scheme == b.scheme && a.flavor == b.flavor && a.pad_to == b.pad_to &&
         padded_len_ == other.padded_len_ && a.cu == b.cu && a.prefix == b.prefix && a.real == b.real &&
         a.whole == b.whole && rank_start_ == other.rank_start_ && codes_ == other.codes_;
}

bool CpPlan::writes(std::int64_t rank, const CpRow& row) const {
  return row.visible && (rank == 0 || batch_.whole[row.request] == 0);
}

void CpPlan::check_rank(std::int64_t rank) const {
  if (rank < 0 || rank >= batch_.world_size) {
    refuse_index("CpPlan", "rank", "is ", rank, ", needs 0 to ", batch_.world_size - 1);
  }
}

template <class F>
Ints CpPlan::map_rows(std::int64_t rank, std::int64_t length, F&& f) const {
  check_rank(rank);
  const std::int64_t count = local_rows(rank);
  if (length != -1 && length < count) {
    refuse_value("CpPlan", "length", "is ", length, ", needs at least the ", count, " local rows of rank ", rank);
  }
  Ints out(length == -1 ? count : length);
  const std::int64_t* codes = codes_.data() + rank_start_[rank];
  for (std::int64_t i = 0; i < count; ++i) out[i] = f(row(codes[i]));
  std::fill(out.begin() + count, out.end(), f(CpRow{}));
  return out;
}

Ints CpPlan::rank_rows(std::int64_t rank, std::int64_t length) const {
  return map_rows(rank, length, [](const CpRow& row) { return row.id; });
}

Ints CpPlan::positions(std::int64_t rank, std::int64_t length) const {
  return map_rows(rank, length,
                  [&](const CpRow& row) { return row.request < 0 ? 0 : batch_.prefix[row.request] + row.offset; });
}

Ints CpPlan::row_to_request(std::int64_t rank, std::int64_t length, bool include_pads) const {
  return map_rows(rank, length, [&](const CpRow& row) { return row.visible || include_pads ? row.request : -1; });
}

Ints CpPlan::context_lens(std::int64_t rank, std::int64_t length) const {
  return map_rows(rank, length,
                  [&](const CpRow& row) { return row.visible ? batch_.prefix[row.request] + row.offset + 1 : 0; });
}

std::pair<Ints, Ints> CpPlan::ks_ke(std::int64_t rank, std::int64_t length) const {
  auto ks = map_rows(rank, length, [&](const CpRow& row) { return row.visible ? batch_.k_start[row.request] : 0; });
  auto ke = context_lens(rank, length);
  for (std::size_t i = 0; i < ks.size(); ++i) ke[i] += ks[i];
  return {std::move(ks), std::move(ke)};
}

Ints CpPlan::kv_write_mask(std::int64_t rank, std::int64_t length) const {
  return map_rows(rank, length, [&](const CpRow& row) { return writes(rank, row) ? 1 : 0; });
}

Ints CpPlan::slot_mapping(const Tensor& global_slots, std::int64_t rank, std::int64_t length) const {
  constexpr std::string_view kOp = "CpPlan.slot_mapping";
  require_int(kOp, "global_slots", global_slots);
  require_shape(kOp, "global_slots", global_slots, {kAny}, "[T]");
  if (global_slots.shape[0] != batch_.rows() && global_slots.shape[0] != batch_.pad_to) {
    refuse_value(kOp, "global_slots", "has ", global_slots.shape[0], " entries, needs one for each of the plan's ",
                 batch_.rows(), " rows", batch_.pad_to < 0 ? "" : " (or one for each of its pad_to rows)");
  }
  const IntView<1> slots(global_slots);
  return map_rows(rank, length, [&](const CpRow& row) { return writes(rank, row) ? slots(row.id) : -1; });
}

}  // namespace sparsespan
