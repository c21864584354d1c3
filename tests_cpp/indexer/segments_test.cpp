#include "indexer/segments.h"

#include <gtest/gtest.h>

namespace sparsespan::indexer {
namespace {

ScoreProblem problem(std::vector<Window> windows) {
  ScoreProblem p;
  p.rows = static_cast<std::int64_t>(windows.size());
  p.windows = std::move(windows);
  for (const Window& w : p.windows) p.columns = std::max(p.columns, w.end);
  for (std::int64_t row = 0; row < p.rows; row += kGroupRows) {
    p.groups.push_back({row, std::min(p.rows, row + kGroupRows), 0});
  }
  p.choose_kernels();
  return p;
}

std::int64_t scores_in(const ScoreProblem& p, Window columns) {
  std::int64_t sum = 0;
  for (const Window& w : p.windows) sum += w.clipped(columns).size();
  return sum;
}

// Every segment of the only group has the same number of scores, but for a panel; together they are all columns.
void expect_even(const ScoreProblem& p, const Segments& segments) {
  ASSERT_EQ(p.groups.size(), 1U);
  std::int64_t all = 0;
  for (const Window& w : p.windows) all += w.size();
  const std::int64_t slack = 2 * p.kernels->panel_keys * p.rows;
  std::int64_t sum = 0;
  for (std::int64_t i = 0; i < segments.count(); ++i) {
    const Window columns = segments.columns(0, i);
    if (i > 0) {
      EXPECT_EQ(columns.begin, segments.columns(0, i - 1).end);
      EXPECT_TRUE(columns.begin % p.kernels->panel_keys == 0 || columns.size() == 0);
    }
    EXPECT_LE(columns.size(), segments.widest());
    EXPECT_NEAR(static_cast<double>(scores_in(p, columns)), static_cast<double>(all) / segments.count(), slack);
    sum += scores_in(p, columns);
  }
  EXPECT_EQ(sum, all);
}

TEST(Segments, HaveEqualWorkUnderCausalWindows) {
  std::vector<Window> windows(16, {0, 4096});
  for (int row = 8; row < 16; ++row) windows[row] = {0, 8192};
  const ScoreProblem p = problem(windows);
  const Segments segments(p, 2048, 2);
  EXPECT_EQ(segments.count(), 2);
  expect_even(p, segments);
}

TEST(Segments, AreShortRatherThanLeaveThreadsWithoutWork) {
  const ScoreProblem p = problem(std::vector<Window>(16, {0, 4096}));
  for (const int threads : {2, 5, 8}) {
    const Segments segments(p, 2048, threads);
    EXPECT_EQ(segments.count(), threads);
    expect_even(p, segments);
  }
  EXPECT_EQ(Segments(p, 2048, 40).count(), 8);
  EXPECT_EQ(Segments(problem(std::vector<Window>(16, {0, 1000})), 2048, 2).count(), 1);
}

TEST(Segments, FollowWindowsThatLieApartOrAreEmpty) {
  const ScoreProblem p = problem({{90000, 96000}, {}, {50, 30000}, {70001, 70002}, {90000, 99999}});
  for (const int threads : {1, 2, 3}) {
    const Segments segments(p, 100, threads);
    EXPECT_EQ(segments.count(), 4 * threads * (threads > 1) + (threads == 1));
    EXPECT_EQ(segments.columns(0, 0).begin, 50);
    EXPECT_EQ(segments.columns(0, segments.count() - 1).end, 99999);
    expect_even(p, segments);
  }
}

TEST(Segments, OfNothingAreEmpty) {
  const Segments none(problem({}), 10, 4);
  EXPECT_EQ(none.widest(), 0);
  const Segments empty(problem({{}, {}}), 10, 4);
  EXPECT_EQ(empty.count(), 1);
  EXPECT_EQ(empty.columns(0, 0).size(), 0);
}

TEST(Segments, AreOneWhereGroupsAreMany) {
  const Segments segments(problem(std::vector<Window>(16 * 20, {0, 50000})), 10, 2);
  EXPECT_EQ(segments.count(), 1);
  EXPECT_EQ(segments.columns(19, 0).end, 50000);
}

}  // namespace
}  // namespace sparsespan::indexer
