#include <algorithm>
#include <array>

#include "core/check.h"
#include "parallel/volume.h"

namespace sparsespan {

namespace {

constexpr std::string_view kOp = "volume";
constexpr std::array<std::string_view, 7> kSplits{"zigzag",     "zigzag_padded",   "ceil_chunk", "interleave",
                                                  "contiguous", "contiguous_flat", "thd_even"};

std::int64_t ceil_over(std::int64_t a, std::int64_t b) { return a / b + (a % b != 0); }

// Rows of one request on rank r. The block rules are those of cp.split_plan.
std::int64_t rows_on(std::string_view scheme, std::int64_t length, std::int64_t ranks, std::int64_t r) {
  const std::int64_t blocks = 2 * ranks;
  const std::int64_t back = blocks - 1 - r;
  if (scheme == "zigzag") {
    const std::int64_t more = length % blocks;
    return length / blocks * 2 + (r < more) + (back < more);
  }
  const std::int64_t chunk = ceil_over(length, blocks);
  if (scheme == "zigzag_padded") return 2 * chunk;
  if (scheme == "ceil_chunk") {
    return std::clamp<std::int64_t>(length - r * chunk, 0, chunk) +
           std::clamp<std::int64_t>(length - back * chunk, 0, chunk);
  }
  return length / ranks + (length % ranks * (r + 1) / ranks - length % ranks * r / ranks);  // contiguous
}

}  // namespace

bool is_split(std::string_view scheme) { return std::find(kSplits.begin(), kSplits.end(), scheme) != kSplits.end(); }

std::int64_t busiest_rows(std::string_view scheme, const std::vector<std::int64_t>& lengths, std::int64_t ranks) {
  std::int64_t tokens = 0;
  for (std::size_t s = 0; s < lengths.size(); ++s) {
    if (scheme == "thd_even" && lengths[s] % (2 * ranks) != 0) {
      refuse_value(kOp, "tokens", "has ", lengths[s], " at [", s,
                   "], 'thd_even' needs a multiple of 2 * ranks = ", 2 * ranks, "; 'zigzag' takes any length");
    }
    tokens += lengths[s];
  }
  if (scheme == "interleave" || scheme == "contiguous_flat" || scheme == "thd_even") return ceil_over(tokens, ranks);
  std::int64_t most = 0;
  for (std::int64_t r = 0; r < ranks; ++r) {
    std::int64_t rows = 0;
    for (const std::int64_t length : lengths) rows += rows_on(scheme, length, ranks, r);
    most = std::max(most, rows);
  }
  return most;
}

}  // namespace sparsespan
