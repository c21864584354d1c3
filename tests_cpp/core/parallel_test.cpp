#include "core/parallel.h"

#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace sparsespan {
namespace {

TEST(Parallel, EveryIndexRunsOnceAndSlotsAreExclusive) {
  for (int threads : {1, 2, 3, 8}) {
    constexpr std::int64_t n = 1000;
    std::vector<int> hits(n, 0);
    std::vector<std::atomic<int>> busy(static_cast<std::size_t>(team_size(n, threads)));
    std::atomic<bool> shared{false};
    parallel_for(n, threads, [&](std::int64_t i, int slot) {
      if (busy[slot].fetch_add(1) != 0) shared = true;
      ++hits[i];
      busy[slot].fetch_sub(1);
    });
    EXPECT_FALSE(shared.load());
    for (auto h : hits) ASSERT_EQ(h, 1);
  }
}

TEST(Parallel, TheLowestIndexErrorWins) {
  for (int repeat = 0; repeat < 50; ++repeat) {
    for (int threads : {1, 2, 3}) {
      std::string message;
      try {
        parallel_for(200, threads, [&](std::int64_t i, int) {
          if (i >= 37) throw std::runtime_error(std::to_string(i));
        });
      } catch (const std::runtime_error& e) {
        message = e.what();
      }
      EXPECT_EQ(message, "37");
    }
  }
}

TEST(Parallel, NestedCallsAreSerial) {
  std::atomic<int> largest{0};
  parallel_for(4, 2, [&](std::int64_t, int) {
    EXPECT_EQ(team_size(100, 8), 1);
    parallel_for(10, 8, [&](std::int64_t, int slot) {
      if (slot > largest.load()) largest = slot;
    });
    EXPECT_EQ(team_size(100, 8), 1);
  });
  EXPECT_EQ(largest.load(), 0);
  EXPECT_GE(team_size(100, 2), 2);
}

TEST(Parallel, EmptyWorkRunsNothing) {
  parallel_for(0, 2, [](std::int64_t, int) { FAIL(); });
}

TEST(Parallel, RowsRunOnceAndAFewShortOnesStayOnOneThread) {
  EXPECT_EQ(rows_per_task(128), 64);
  EXPECT_EQ(rows_per_task(1 << 20), 1);
  EXPECT_EQ(rows_per_task(0), 8192);
  EXPECT_EQ(row_team_size(64, 128, 8), 1);
  EXPECT_EQ(row_team_size(1000, 128, 8), 8);
  for (std::int64_t rows : {0, 1, 63, 64, 65, 1000}) {
    std::vector<int> hits(static_cast<std::size_t>(rows), 0);
    const int slots = row_team_size(rows, 128, 3);
    parallel_rows(rows, 128, 3, [&](std::int64_t row, int slot) {
      EXPECT_LT(slot, slots);
      ++hits[row];
    });
    for (auto h : hits) ASSERT_EQ(h, 1);
  }
}

TEST(Parallel, TwoThreadsMayCallAtOnce) {
  std::atomic<std::int64_t> sum{0};
  auto work = [&] {
    for (int repeat = 0; repeat < 20; ++repeat) {
      parallel_for(100, 2, [&](std::int64_t i, int) { sum.fetch_add(i); });
    }
  };
  std::thread other(work);
  work();
  other.join();
  EXPECT_EQ(sum.load(), 2 * 20 * 4950);
}

TEST(Parallel, RefusesNegativeThreads) {
  EXPECT_THROW(parallel_for(3, -1, [](std::int64_t, int) {}), std::invalid_argument);
  EXPECT_THROW(set_num_threads(-2), std::invalid_argument);
}

TEST(Parallel, NumThreadsCanBeSetAndReset) {
  const int before = num_threads();
  set_num_threads(3);
  EXPECT_EQ(num_threads(), 3);
  set_num_threads(0);
  EXPECT_EQ(num_threads(), before);
}

}  // namespace
}  // namespace sparsespan
