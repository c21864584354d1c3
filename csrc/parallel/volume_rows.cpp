#include <algorithm>
#include <array>
#include <numeric>

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

// Which rank has the last of a request's `length` > 0 rows, the batch's row number `row` of `tokens`.
std::int64_t last_owner(std::string_view scheme, std::int64_t length, std::int64_t row, std::int64_t tokens,
                        std::int64_t ranks) {
  if (scheme == "interleave") return row % ranks;
  if (scheme == "contiguous_flat") return row / ceil_over(tokens, ranks);
  if (scheme == "contiguous") return ranks - 1;
  if (scheme == "thd_even") return 0;
  // Front and back blocks: the last one that has rows.
  const std::int64_t blocks = 2 * ranks;
  const std::int64_t block =
      scheme == "zigzag" ? std::min(length, blocks) - 1 : (length - 1) / ceil_over(length, blocks);
  return block < ranks ? block : blocks - 1 - block;
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

std::vector<std::int64_t> last_rows(std::string_view scheme, const std::vector<std::int64_t>& lengths,
                                    std::int64_t ranks) {
  std::vector<std::int64_t> owned(static_cast<std::size_t>(ranks), 0);
  const std::int64_t tokens = std::accumulate(lengths.begin(), lengths.end(), std::int64_t{0});
  std::int64_t row = 0;
  for (const std::int64_t length : lengths) {
    row += length;
    if (length > 0) ++owned[static_cast<std::size_t>(last_owner(scheme, length, row - 1, tokens, ranks))];
  }
  return owned;
}

}  // namespace sparsespan
