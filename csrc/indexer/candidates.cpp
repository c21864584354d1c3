#include "indexer/candidates.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <vector>

namespace sparsespan::indexer {

namespace {

constexpr int kBins = 2048;

struct Round {
  int shift;
  std::uint32_t bins;     // mask of this round's bits, moved down
  std::uint32_t decided;  // mask of the bits of the rounds before
  std::uint32_t prefix;   // what those bits are
};

// How often each value of the round's bits occurs among the keys that agree with the prefix.
// Equal neighbours would wait for each other's count in memory: long inputs take turns among kWays tables.
template <int kWays>
std::array<std::uint32_t, kBins> count_bins(const std::uint32_t* keys, std::int64_t n, const Round& round) {
  std::array<std::array<std::uint32_t, kBins>, kWays> counts{};
  for (std::int64_t i = 0; i < n; ++i) {
    if ((keys[i] & round.decided) == round.prefix) ++counts[i % kWays][keys[i] >> round.shift & round.bins];
  }
  for (int way = 1; way < kWays; ++way) {
    for (int bin = 0; bin < kBins; ++bin) counts[0][bin] += counts[way][bin];
  }
  return counts[0];
}

// The greatest key that at least k reach, bit by bit from the first one that differs among them; done early where
// exactly k reach a bound. Sixteen keys at a time beat counting their bits: no table, nothing that waits for memory,
// and next to nothing to do where all are equal.
Cut bisect_cut(const TopkKernels& kernels, const std::uint32_t* keys, std::int64_t n, std::int64_t k) {
  const KeyRange all = kernels.range(keys, n, 0);
  const int bits = std::bit_width(all.least ^ all.greatest);
  std::uint32_t cut = bits == 0 ? all.least : all.least >> (bits - 1) >> 1 << (bits - 1) << 1;
  std::int64_t reach = n;
  for (int bit = bits - 1; bit >= 0 && reach > k; --bit) {
    const std::uint32_t higher = cut | std::uint32_t{1} << bit;
    const std::int64_t count = kernels.count_at_least(keys, n, higher);
    if (count < k) continue;
    cut = higher;
    reach = count;
  }
  cut = kernels.range(keys, n, cut).least;  // the last of those that reach the bound
  return {cut, cut == all.greatest ? k : k - kernels.count_at_least(keys, n, cut + 1)};
}

// Radix select, the key's 11, 11 and 10 bits from the top.
Cut radix_cut(const std::uint32_t* keys, std::int64_t n, std::int64_t k) {
  constexpr std::int64_t kLong = 16384;
  Round round = {21, 2047, 0, 0};
  for (const int shift : {21, 10, 0}) {
    round.shift = shift;
    round.bins = shift == 0 ? 1023 : 2047;
    const auto counts = n < kLong ? count_bins<1>(keys, n, round) : count_bins<4>(keys, n, round);
    std::uint32_t bin = round.bins;
    for (; counts[bin] < k; --bin) k -= counts[bin];
    round.prefix |= bin << shift;
    round.decided |= round.bins << shift;
  }
  return {round.prefix, k};
}

}  // namespace

Cut find_cut(const TopkKernels& kernels, const std::uint32_t* keys, std::int64_t n, std::int64_t k) {
  return kernels.range == nullptr ? radix_cut(keys, n, k) : bisect_cut(kernels, keys, n, k);
}

void Candidates::append(const Candidates& other) {
  std::copy_n(other.keys_, other.count_, keys_ + count_);
  std::copy_n(other.columns_, other.count_, columns_ + count_);
  count_ += other.count_;
}

std::uint32_t Candidates::shrink(const TopkKernels& kernels, std::int64_t k, std::uint32_t floor) {
  if (count_ <= k) return 0;
  // Where many scores are equal the floor often is the cut already, and counting is much quicker than searching.
  std::int64_t above = 0;
  for (std::int64_t i = 0; i < count_; ++i) above += keys_[i] > floor ? 1 : 0;
  const Cut cut = above < k ? Cut{floor, k - above} : find_cut(kernels, keys_, count_, k);
  count_ = kernels.keep(keys_, columns_, count_, cut.key, cut.ties);  // exactly k
  return cut.key;
}

void Candidates::sort_by_score() {
  std::vector<std::uint64_t> order(count_);
  for (std::int64_t i = 0; i < count_; ++i) {
    order[i] = static_cast<std::uint64_t>(~keys_[i]) << 32 | static_cast<std::uint32_t>(columns_[i]);
  }
  std::sort(order.begin(), order.end());
  for (std::int64_t i = 0; i < count_; ++i) {
    keys_[i] = ~static_cast<std::uint32_t>(order[i] >> 32);
    columns_[i] = static_cast<std::int32_t>(order[i]);
  }
}

std::uint32_t guess_floor(const TopkKernels& kernels, const float* scores, std::int64_t n, std::int64_t k,
                          std::uint32_t* sample) {
  if (n < 4 * kSample || n < 4 * k) return 0;
  const std::int64_t step = n / kSample;
  std::array<float, kSample> picked{};
  for (std::int64_t i = 0; i < kSample; ++i) picked[i] = scores[i * step];
  std::array<std::int32_t, kSample> ignored{};
  std::int64_t nan = -1;
  kernels.collect(picked.data(), kSample, 0, kSample, 0, sample, ignored.data(), &nan);
  // About `expected` of the sample belong to the best k; three deviations more, and hardly a row needs a second pass.
  const double expected = static_cast<double>(k) * kSample / static_cast<double>(n);
  const auto rank = static_cast<std::int64_t>(expected + 3 * std::sqrt(expected) + 2);
  return find_cut(kernels, sample, kSample, rank).key;
}

void NanReport::refuse_any(std::string_view op, std::string_view argument,
                           const TensorView<std::int32_t, 2>& out) const {
  const std::uint64_t first = first_.load();
  if (first == kNone) return;
  for (std::int64_t row = 0; row < out.shape[0]; ++row) std::fill_n(out.row(row), out.shape[1], -1);
  refuse_value(op, argument, "has a NaN score at row ", first >> 32, ", column ", first & 0xFFFFFFFFU,
               ", inside the window; needs numbers (nan=\"lowest\" ranks NaN last)");
}

void emit_row(const std::int32_t* columns, std::int64_t n, std::int64_t shift, std::int32_t* out, std::int64_t k) {
  for (std::int64_t i = 0; i < n; ++i) out[i] = static_cast<std::int32_t>(columns[i] - shift);
  std::fill(out + n, out + k, -1);
}

void emit_whole(std::int64_t begin, std::int64_t n, std::int32_t* out, std::int64_t k) {
  for (std::int64_t i = 0; i < n; ++i) out[i] = static_cast<std::int32_t>(begin + i);
  std::fill(out + n, out + k, -1);
}

void emit_keys(const Candidates& row, std::uint32_t* out, std::int64_t k) {
  std::fill(std::copy_n(row.keys(), row.count(), out), out + k, 0);
}

}  // namespace sparsespan::indexer
