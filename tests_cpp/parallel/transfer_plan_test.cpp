#include "parallel/transfer_plan.h"

#include <gtest/gtest.h>

#include <map>
#include <tuple>

#include "support.h"

namespace sparsespan {
namespace {

KvSide side(std::int64_t tp, std::int64_t cp, std::int64_t dcp, std::vector<std::int64_t> stages) {
  KvSide s;
  s.tp = tp;
  s.cp = cp;
  s.dcp = dcp;
  s.pp = static_cast<std::int64_t>(stages.size());
  s.page_size = 4;
  s.stages = std::move(stages);
  return s;
}

// The closed count against a walk over every position.
TEST(PositionSet, CountsFirstAndLastAgreeWithAWalk) {
  for (std::int64_t src_block : {1, 2, 3}) {
    for (std::int64_t src_ranks : {1, 2, 4}) {
      for (std::int64_t dst_block : {1, 4}) {
        for (std::int64_t dst_ranks : {1, 3}) {
          for (std::int64_t start : {0, 5}) {
            for (std::int64_t stop : {5, 6, 29, 71}) {
              const PositionSet set{.src = {src_block, src_ranks},
                                    .dst = {dst_block, dst_ranks},
                                    .src_class = src_ranks - 1,
                                    .dst_class = 0,
                                    .start = start,
                                    .stop = stop};
              std::vector<std::int64_t> walk;
              for (std::int64_t p = start; p < stop; ++p) {
                if (set.src.owner(p) == set.src_class && set.dst.owner(p) == 0) walk.push_back(p);
              }
              ASSERT_EQ(positions_of(set), walk);
              ASSERT_EQ(set.count(), static_cast<std::int64_t>(walk.size()));
              if (walk.empty()) continue;
              ASSERT_EQ(set.first(), walk.front());
              ASSERT_EQ(set.last(), walk.back());
            }
          }
        }
      }
    }
  }
}

TEST(TransferPlan, EveryRankLayerAndPositionOnce) {
  TransferParams p;
  p.prefill = side(2, 3, 1, {2, 1});
  p.prefill.kv = KvPlacement::layer_split;
  p.decode = side(4, 1, 2, {1, 2});
  p.num_layers = 3;
  p.kv_bytes = 7;
  p.lengths = {30, 0, 9};
  p.present = {8, 0, 9};
  for (const Spread spread : {Spread::balanced, Spread::pages, Spread::request, Spread::first}) {
    p.spread = spread;
    std::map<std::tuple<std::int64_t, std::int64_t, std::int64_t>, int> arrivals;  // dst, layer, position
    for (const Transfer& t : transfer_plan(p)) {
      ASSERT_EQ(t.request, 0);
      for (std::int64_t at = t.start; at < t.stop; ++at) {
        if (at % 2 != t.dst_class) continue;
        for (std::int64_t layer = t.layer_begin; layer < t.layer_end; ++layer) ++arrivals[{t.dst, layer, at}];
      }
    }
    EXPECT_EQ(arrivals.size(), 3U * 4U * 11U);  // layers x tp ranks of the stage x half of 22 positions
    for (const auto& [key, count] : arrivals) EXPECT_EQ(count, 1);
  }
}

TEST(TransferPlan, RefusesBadInput) {
  TransferParams good;
  good.prefill = side(1, 1, 1, {1});
  good.decode = side(1, 1, 1, {1});
  good.num_layers = 1;
  good.kv_bytes = 1;
  EXPECT_TRUE(transfer_plan(good).empty());
  auto bad = good;
  bad.decode.cp = 2;
  EXPECT_THROW(transfer_plan(bad), std::invalid_argument);
  bad = good;
  bad.lengths = {1};
  EXPECT_THROW(transfer_plan(bad), std::invalid_argument);
  bad = good;
  bad.index_layers = {1};
  EXPECT_THROW(transfer_plan(bad), std::out_of_range);
  bad = good;
  bad.prefill.page_size = bad.decode.page_size = (std::int64_t{1} << 62) + 1;
  bad.decode.page_size -= 1;
  EXPECT_THROW(transfer_plan(bad), std::invalid_argument);
}

}  // namespace
}  // namespace sparsespan
