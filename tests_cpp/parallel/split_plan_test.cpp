#include "parallel/split_plan.h"

#include <gtest/gtest.h>

#include <atomic>
#include <random>
#include <set>
#include <thread>

#include "support.h"

namespace sparsespan {
namespace {

using Array = test::Array<std::int64_t>;

constexpr const char* kSchemes[] = {"zigzag",     "zigzag_padded", "ceil_chunk",
                                    "interleave", "contiguous",    "contiguous_flat"};

Array array_of(const Ints& values) {
  Array a({static_cast<std::int64_t>(values.size())});
  a.data = values;
  return a;
}

struct Batch {
  std::string scheme;
  Ints cu;
  Ints prefix;
  std::int64_t ranks = 1;
  Ints kind = {};
  std::string flavor = "native";
};

std::shared_ptr<const CpPlan> plan_of(const Batch& b) {
  Array cu = array_of(b.cu);
  Array prefix = array_of(b.prefix);
  Array kind = array_of(b.kind);
  SplitPlanParams p{b.scheme, cu.tensor(), prefix.tensor(), b.ranks, {}, std::nullopt, b.flavor};
  if (!b.kind.empty()) p.row_kind = kind.tensor();
  return split_plan(p);
}

TEST(SplitPlan, WorkedExamples) {
  const auto zigzag = plan_of({"zigzag", {0, 13}, {0}, 4});
  EXPECT_EQ(zigzag->rank_rows(0, -1), (Ints{0, 1, 12}));
  EXPECT_EQ(zigzag->rank_rows(3, -1), (Ints{6, 7, 8, 9}));
  const auto padded = plan_of({"zigzag_padded", {0, 13, 20}, {0, 0}, 4});
  EXPECT_EQ(padded->rank_rows(1, -1), (Ints{2, 3, 12, -1, 14, 19}));
  EXPECT_EQ(padded->positions(0, -1), (Ints{0, 1, 14, 15, 0, 7}));
  const auto chunk = plan_of({"ceil_chunk", {0, 7}, {0}, 2});
  EXPECT_EQ(chunk->restore_index(), (Ints{0, 1, 4, 5, 6, 7, 2}));
  const auto flat = plan_of({"contiguous_flat", {0, 13, 20}, {100, 0}, 3});
  EXPECT_EQ(flat->seq_lens(1).q, (Ints{6, 7}));
  EXPECT_EQ(flat->seq_lens(1).kv, (Ints{113, 1}));
  const auto even = plan_of({"thd_even", {0, 8, 16}, {0, 0}, 2});
  EXPECT_EQ(even->rank_rows(0, -1), (Ints{0, 1, 6, 7, 8, 9, 14, 15}));
}

TEST(SplitPlan, EveryRowOnceDecodeRowsOnEveryRank) {
  std::mt19937 engine(3);
  for (int round = 0; round < 200; ++round) {
    Batch b;
    b.scheme = kSchemes[round % 6];
    b.ranks = 1 + static_cast<std::int64_t>(engine() % 9);
    b.cu = {0};
    for (int s = 0; s < 5; ++s) {
      const auto length = static_cast<std::int64_t>(engine() % 40);
      const bool decode = engine() % 3 == 0;
      b.cu.push_back(b.cu.back() + length);
      b.prefix.push_back(static_cast<std::int64_t>(engine() % 100));
      b.kind.insert(b.kind.end(), length, decode ? 1 : 0);
    }
    const auto plan = plan_of(b);
    const Ints restore = plan->restore_index();
    Ints copies(b.cu.back(), 0);
    for (std::int64_t r = 0; r < b.ranks; ++r) {
      const Ints rows = plan->rank_rows(r, plan->padded_len());
      for (std::int64_t i = 0; i < plan->padded_len(); ++i) {
        if (rows[i] < 0) continue;
        ++copies[rows[i]];
        if (r == 0 || b.kind[rows[i]] == 0) {
          EXPECT_EQ(restore[rows[i]], r * plan->padded_len() + i);
        }
      }
    }
    for (std::int64_t i = 0; i < b.cu.back(); ++i) EXPECT_EQ(copies[i], b.kind[i] == 1 ? b.ranks : 1);
  }
}

TEST(SplitPlan, EqualityAndFingerprint) {
  const Batch b{"zigzag", {0, 13, 20}, {3, 0}, 4};
  EXPECT_TRUE(*plan_of(b) == *plan_of(b));
  EXPECT_EQ(plan_of(b)->fingerprint(), plan_of(b)->fingerprint());
  std::set<std::uint64_t> prints;
  for (const char* scheme : kSchemes) {
    Batch other = b;
    other.scheme = scheme;
    prints.insert(plan_of(other)->fingerprint());
  }
  EXPECT_EQ(prints.size(), 6U);
}

TEST(SplitPlan, BuffersOfDroppedPlansAreReusedByManyThreads) {
  std::vector<std::thread> threads;
  std::atomic<int> wrong = 0;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([t, &wrong] {
      for (std::int64_t n = 1; n < 30; ++n) {
        const std::int64_t rows = 20'000 * n + t;
        const auto plan = plan_of({"contiguous", {0, rows}, {0}, 4});
        const Ints restore = plan->restore_index();
        const Ints counts = plan->counts();
        if (restore.front() != 0 || restore.back() != 3 * plan->padded_len() + counts[3] - 1) ++wrong;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST(SplitPlan, Refuses) {
  EXPECT_THROW(plan_of({"zag", {0}, {}, 1}), std::invalid_argument);
  EXPECT_THROW(plan_of({"zigzag", {0, 5}, {0}, 0}), std::invalid_argument);
  EXPECT_THROW(plan_of({"zigzag", {0, 5, 4}, {0, 0}, 2}), std::invalid_argument);
  EXPECT_THROW(plan_of({"thd_even", {0, 5}, {0}, 2}), std::invalid_argument);
  EXPECT_THROW(plan_of({"zigzag", {0, 7}, {0}, 4, {}, "sglang"}), std::invalid_argument);
  EXPECT_THROW(plan_of({"zigzag", {0, 7}, {0}, 4})->rank_rows(4, -1), std::out_of_range);
  // Decode rows, or padding, that would need row numbers beyond 31 bits: refused before anything is laid out.
  EXPECT_THROW(plan_of({"zigzag", {0, 3000}, {0}, 1 << 20, Ints(3000, 1)}), std::invalid_argument);
  Ints cu(1101);
  for (std::int64_t s = 0; s <= 1100; ++s) cu[s] = s;
  EXPECT_THROW(plan_of({"zigzag_padded", cu, Ints(1100, 0), 1 << 20}), std::invalid_argument);
}

}  // namespace
}  // namespace sparsespan
