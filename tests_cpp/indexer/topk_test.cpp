#include "indexer/topk.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "support.h"

namespace sparsespan {
namespace {

using test::Array;

// The order written down: a stable sort by score leaves equal scores in index order.
std::vector<std::int32_t> by_sorting(const float* scores, std::int64_t n, std::int64_t k) {
  std::vector<std::int32_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [scores](int a, int b) { return scores[a] > scores[b]; });
  order.resize(std::min(n, k));
  std::sort(order.begin(), order.end());
  order.resize(k, -1);
  return order;
}

// Rows of different kinds: random, few values with signed zeros, rising, all equal.
Array<float> rows_of(std::int64_t n) {
  auto scores = test::random_array<float>({4, n}, 11);
  for (std::int64_t i = 0; i < n; ++i) {
    scores.data[n + i] = i % 3 == 0 ? -0.0F : static_cast<float>(i % 2);
    scores.data[2 * n + i] = static_cast<float>(i);
    scores.data[3 * n + i] = -2.5F;
  }
  return scores;
}

TEST(Topk, EqualsAStableSort) {
  for (const Isa isa : test::available_isas()) {
    const test::IsaScope scope(isa);
    for (const std::int64_t n : {1, 31, 3000, 20000}) {
      for (const std::int64_t k : {1, 100, 2048}) {
        auto scores = rows_of(n);
        Array<std::int32_t> out({4, k});
        topk({.scores = scores.tensor(), .k = k, .out = out.tensor(), .threads = 3});
        for (int row = 0; row < 4; ++row) {
          const std::vector<std::int32_t> got(out.data.begin() + row * k, out.data.begin() + (row + 1) * k);
          EXPECT_EQ(got, by_sorting(scores.data.data() + row * n, n, k)) << "n " << n << " k " << k << " row " << row;
        }
      }
    }
  }
}

TEST(Topk, RefusesNanAndLeavesNothing) {
  for (const std::int64_t n : {50, 20000}) {
    auto scores = rows_of(n);
    scores.data[n + 7] = std::numeric_limits<float>::quiet_NaN();
    Array<std::int32_t> out({4, 8}, 3);
    EXPECT_THROW(topk({.scores = scores.tensor(), .k = 8, .out = out.tensor(), .threads = 2}), std::invalid_argument);
    EXPECT_TRUE(std::all_of(out.data.begin(), out.data.end(), [](int i) { return i == -1; }));
    topk({.scores = scores.tensor(), .k = 8, .out = out.tensor(), .nan = indexer::NanRule::lowest});
    EXPECT_EQ(std::count(out.data.begin(), out.data.end(), 7), 1);  // row 3's eight first, not row 1's NaN
  }
}

TEST(Topk, RefusesBadWindows) {
  auto scores = rows_of(10);
  Array<std::int32_t> out({4, 2}, 3);
  Array<std::int64_t> starts({4}, 4);
  Array<std::int32_t> lengths({4}, 7);
  EXPECT_THROW(topk({.scores = scores.tensor(),
                     .k = 2,
                     .lengths = lengths.tensor(),
                     .row_starts = starts.tensor(),
                     .out = out.tensor()}),
               std::invalid_argument);
  EXPECT_THROW(topk({.scores = scores.tensor(), .k = 0, .out = out.tensor()}), std::invalid_argument);
  EXPECT_EQ(std::count(out.data.begin(), out.data.end(), 3), 8);
}

}  // namespace
}  // namespace sparsespan
