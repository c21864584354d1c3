#include "pipeline/layer_shard.h"

#include <gtest/gtest.h>

#include <set>
#include <thread>

#include "comm/thread_comm.h"
#include "support.h"

namespace sparsespan::pipeline {
namespace {

TEST(ShardOrder, FetchesTheLayerAheadOnTheCircleOfTheStage) {
  ShardOrder order({31, 30, 8, 1, false});
  EXPECT_EQ(order.target(31), 32);  // (31 + 1) % 30 + 31 would be 33
  EXPECT_EQ(order.target(60), 31);
  EXPECT_EQ(order.owner(31), 7);
}

// Whatever is reached next, the window of a layer holds it from its load to its use.
TEST(ShardOrder, AWindowIsNotTakenBeforeItsLayerIsUsed) {
  for (std::int64_t n = 1; n <= 14; ++n) {
    for (std::int64_t k = 0; k <= std::max<std::int64_t>(0, n - 2); ++k) {
      for (const bool fixed : {false, true}) {
        ShardOrder order({5, n, 3, k, fixed});
        std::vector<std::int64_t> held(order.windows(), -1);
        for (const auto& load : order.seed()) held[load.window] = load.layer;
        std::vector<std::set<std::int64_t>> places(n);
        for (std::int64_t step = 0; step < 3 * n; ++step) {
          const std::int64_t layer = 5 + step % n;
          const ShardLoad load = order.reach(layer);
          held[load.window] = load.layer;
          ASSERT_EQ(held[order.window(layer)], layer) << n << " " << k << " " << fixed;
          places[step % n].insert(order.window(layer));
        }
        const std::int64_t runs = n / (k + 1) < 1 ? 1 : n / (k + 1);
        EXPECT_EQ(order.windows(), fixed ? (n + runs - 1) / runs : k + 1);
        if (fixed) {
          for (const auto& place : places) EXPECT_EQ(place.size(), 1U);
        }
      }
    }
  }
}

TEST(ShardOrder, RefusesWithTheMaximumAndTheLayerExpected) {
  const auto words = [](auto&& f) -> std::string {
    try {
      f();
    } catch (const std::invalid_argument& e) {
      return e.what();
    }
    return "nothing";
  };
  EXPECT_NE(words([] { ShardOrder({31, 30, 2, 29, false}); }).find("prefetch is 29, needs 0 to 28"), std::string::npos);
  EXPECT_NE(words([] { ShardOrder({0, 2, 2, 1, false}); }).find("needs 0 to 0"), std::string::npos);
  EXPECT_NE(words([] { ShardOrder({0, 0, 2, 0, false}); }).find("has no layers"), std::string::npos);
  EXPECT_NE(words([] { ShardOrder({-1, 2, 2, 0, false}); }).find("starts at layer -1"), std::string::npos);
  ShardOrder order({31, 30, 2, 1, false});
  order.seed();
  EXPECT_NE(words([&] { order.window(31); }).find("no layer is reached yet"), std::string::npos);
  order.reach(31);
  EXPECT_NE(words([&] { order.reach(33); }).find("layer is 33, expected 32"), std::string::npos);
  EXPECT_NE(words([&] { order.reach(61); }).find("layer is 61, needs 31 to 60"), std::string::npos);
  EXPECT_NE(words([&] { order.window(32); }).find("layer is 32, expected 31"), std::string::npos);
  EXPECT_EQ(order.expected(), 32);  // a refusal leaves no trace
}

TEST(LayerShard, EveryRankSeesEveryWeight) {
  constexpr int kRanks = 3;
  constexpr std::int64_t kStart = 4;
  constexpr std::int64_t kLayers = 7;
  constexpr std::int64_t kPrefetch = 2;
  auto comms = ThreadComm::make(kRanks);
  std::vector<std::thread> team;
  std::vector<int> good(kRanks, 0);
  for (int rank = 0; rank < kRanks; ++rank) {
    team.emplace_back([&, rank] {
      const ShardShape shape{kStart, kLayers, kRanks, kPrefetch, false};
      std::vector<test::Array<float>> store;
      store.reserve(kLayers + kPrefetch + 1);
      ShardSeries series{"o_proj", std::vector<Tensor>(kLayers), {}, nullptr};
      for (std::int64_t i = 0; i < kLayers; ++i) {
        if ((kStart + i) % kRanks != rank) continue;
        store.emplace_back(std::vector<std::int64_t>{2, 3}, static_cast<float>(kStart + i));
        series.owned[i] = store.back().tensor();
      }
      for (std::int64_t w = 0; w <= kPrefetch; ++w) {
        store.emplace_back(std::vector<std::int64_t>{2, 3});
        series.windows.push_back(store.back().tensor());
      }
      LayerShard shard(comms[rank], shape, {series});
      for (std::int64_t step = 0; step < 2 * kLayers; ++step) {
        const std::int64_t layer = kStart + step % kLayers;
        shard.reach(layer);
        const auto window = shard.wait(layer, -1);
        const Tensor& seen = shard.owns(layer) ? series.owned[layer - kStart] : series.windows[window];
        good[rank] += static_cast<const float*>(seen.data)[5] == static_cast<float>(layer);
      }
      shard.wait_all();
      EXPECT_EQ(shard.under_way(), 0);
    });
  }
  for (auto& thread : team) thread.join();
  EXPECT_EQ(good, std::vector<int>(kRanks, 2 * kLayers));
}

}  // namespace
}  // namespace sparsespan::pipeline
