#include "parallel/rank_grid.h"

#include <gtest/gtest.h>

#include <numeric>

#include "parallel/nearest.h"

namespace sparsespan {
namespace {

using Ranks = std::vector<std::int32_t>;

TEST(RankGrid, SglangTp8Cp2) {
  const RankGrid grid({.flavor = GridFlavor::sglang, .tp = 8, .cp = 2});
  EXPECT_EQ(grid.group("cp").ranks, (Ranks{0, 4, 1, 5, 2, 6, 3, 7}));
  EXPECT_EQ(grid.group("cp").size, 2);
  EXPECT_EQ(grid.attn_tp(), 4);
}

TEST(RankGrid, VllmTp4Pcp2Pp2Dcp2) {
  const RankGrid grid({.flavor = GridFlavor::vllm, .tp = 4, .cp = 2, .dcp = 2, .pp = 2});
  EXPECT_EQ(grid.world_size(), 16);
  EXPECT_EQ(grid.group("pp").ranks, (Ranks{0, 8, 4, 12, 1, 9, 5, 13, 2, 10, 6, 14, 3, 11, 7, 15}));
}

TEST(RankGrid, EveryGroupListHasEachRankOnce) {
  for (const auto flavor : {GridFlavor::native, GridFlavor::sglang, GridFlavor::vllm}) {
    const RankGrid grid({.flavor = flavor, .tp = 12, .cp = 1, .dcp = 3, .pp = 2, .dp = 2});
    for (const auto& g : grid.groups()) {
      Ranks sorted = g.ranks;
      std::sort(sorted.begin(), sorted.end());
      Ranks all(static_cast<std::size_t>(grid.world_size()));
      std::iota(all.begin(), all.end(), 0);
      EXPECT_EQ(sorted, all) << g.name;
      for (std::size_t i = 0; i < all.size(); ++i) EXPECT_EQ(g.ranks[g.place[i]], static_cast<std::int32_t>(i));
    }
  }
}

TEST(RankGrid, RefusesWithTheNearestNumbers) {
  try {
    const RankGrid grid({.tp = 8, .dcp = 3});
    FAIL();
  } catch (const std::invalid_argument& e) {
    EXPECT_NE(std::string(e.what()).find("nearest valid dcp: 2 or 4; nearest valid tp: 6 or 9"), std::string::npos);
  }
  EXPECT_THROW(RankGrid({.tp = 8}).group("none"), std::invalid_argument);
}

TEST(Nearest, DivisorsAndMultiples) {
  EXPECT_EQ(nearest_divisors(8, 3), "2 or 4");
  EXPECT_EQ(nearest_divisors(8, 16), "8");
  EXPECT_EQ(nearest_divisors(8, 0), "1");
  EXPECT_EQ(nearest_divisors(8, 4), "4");
  EXPECT_EQ(nearest_multiples(8, 3), "6 or 9");
  EXPECT_EQ(nearest_multiples(2, 3), "3");
  EXPECT_EQ(nearest_multiples(9, 3), "9");
}

}  // namespace
}  // namespace sparsespan
