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

// A local row is coded as the row of the batch (>= 0), as padding of no request (-1), or as -2 - k: padding number k
// of those inside requests, counted request by request.
constexpr std::int32_t kNobody = -1;

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
  void add(const PlanBuffer& words) {  // two at a time
    const std::int32_t* w = words.data();
    const std::int64_t n = words.size();
    const auto bits = [&](std::int64_t i) { return static_cast<std::uint64_t>(static_cast<std::uint32_t>(w[i])); };
    for (std::int64_t i = 0; i + 1 < n; i += 2) add(bits(i) | bits(i + 1) << 32U);
    if (n % 2 == 1) add(bits(n - 1));
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

CpPlan::CpPlan(CpBatch batch) : batch_(std::move(batch)), restore_(batch_.rows()) {
  count_pads();
  place_rows(layout_starts());
  fingerprint_ = mix();
}

void CpPlan::count_pads() {
  const bool filled = batch_.scheme == CpScheme::zigzag_padded;
  const std::int64_t unit = 2 * batch_.world_size;
  pad_start_.assign(batch_.requests() + 1, 0);
  for (std::int64_t s = 0; s < batch_.requests(); ++s) {
    const bool fill = filled && batch_.whole[s] == 0;
    const std::int64_t end = fill ? round_up(batch_.split_len[s], unit) : batch_.split_len[s];
    pad_start_[s + 1] = pad_start_[s] + end - batch_.length(s);
  }
  if (pad_start_.back() == 0) pad_start_.clear();
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

// The restore index is written with the rows it inverts; rank 0's copy of a replicated row is the one that counts.
void CpPlan::place_rows(std::vector<Ints> cursor) {
  const std::int64_t total = rank_start_.back();
  codes_.emplace(total);
  std::int32_t* restore = restore_.data();
  for_each_run(batch_, [&](const CpRun& run) {
    std::int64_t& next = cursor[run.phase][run.rank];
    std::int32_t* out = codes_->data() + next;
    const auto gathered = static_cast<std::int32_t>(run.rank * padded_len_ + next - rank_start_[run.rank]);
    next += run.count;
    const std::int64_t start = batch_.cu[run.request];
    const std::int64_t left = batch_.length(run.request) - run.first;
    const std::int64_t inside = std::clamp<std::int64_t>(ceil_div(left, run.stride), 0, run.count);
    const bool counts = run.rank == 0 || batch_.whole[run.request] == 0;
    for (std::int64_t i = 0; i < inside; ++i) {
      const std::int64_t id = start + run.first + i * run.stride;
      out[i] = static_cast<std::int32_t>(id);
      if (counts) restore[id] = gathered + static_cast<std::int32_t>(i);
    }
    for (std::int64_t i = inside; i < run.count; ++i) {  // padding is never strided
      out[i] = static_cast<std::int32_t>(-2 - (pad_start_[run.request] + i - left));
    }
  });
  // Rows of phase 1 follow those of phase 0; what a rank still lacks is padding of no request.
  for (std::int64_t r = 0; r < batch_.world_size; ++r) {
    std::fill(codes_->data() + cursor[1][r], codes_->data() + rank_start_[r + 1], kNobody);
  }
}

std::uint64_t CpPlan::mix() const {
  Mixer mixer;
  mixer.add(static_cast<std::uint64_t>(batch_.scheme) | static_cast<std::uint64_t>(batch_.flavor) << 8U);
  mixer.add(static_cast<std::uint64_t>(batch_.pad_to));
  mixer.add(static_cast<std::uint64_t>(padded_len_));
  mixer.add(batch_.cu);
  mixer.add(batch_.prefix);
  mixer.add(batch_.real);
  for (const auto w : batch_.whole) mixer.add(w);
  mixer.add(rank_start_);
  mixer.add(*codes_);
  return mixer.value();
}

// `hint` is the request of the row before: rows of a rank mostly go up, so the search is seldom needed.
CpRow CpPlan::row(std::int64_t code, std::int64_t& hint) const {
  if (code == kNobody) return {};
  const bool pad = code < 0;
  const Ints& starts = pad ? pad_start_ : batch_.cu;
  const std::int64_t at = pad ? -2 - code : code;
  const auto holds = [&](std::int64_t s) { return s < batch_.requests() && starts[s] <= at && at < starts[s + 1]; };
  if (!holds(hint)) {
    const bool next = holds(hint + 1);
    hint = next ? hint + 1 : std::upper_bound(starts.begin(), starts.end(), at) - starts.begin() - 1;
  }
  if (pad) return {-1, hint, batch_.length(hint) + at - starts[hint], false};
  const std::int64_t offset = at - starts[hint];
  return {code, hint, offset, offset < batch_.real[hint]};
}

Ints CpPlan::restore_index() const { return {restore_.data(), restore_.data() + restore_.size()}; }

bool CpPlan::operator==(const CpPlan& other) const {
  const CpBatch& a = batch_;
  const CpBatch& b = other.batch_;
  return fingerprint_ == other.fingerprint_ && a.scheme == b.scheme && a.flavor == b.flavor && a.pad_to == b.pad_to &&
         padded_len_ == other.padded_len_ && a.cu == b.cu && a.prefix == b.prefix && a.real == b.real &&
         a.whole == b.whole && rank_start_ == other.rank_start_ &&
         std::equal(codes_->data(), codes_->data() + codes_->size(), other.codes_->data());
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
  const std::int32_t* codes = codes_->data() + rank_start_[rank];
  std::int64_t hint = 0;
  for (std::int64_t i = 0; i < count; ++i) out[i] = f(row(codes[i], hint));
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
