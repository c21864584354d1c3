// The prefill ops between ranks, natively on threads: ThreadSanitizer looks at these.

#include <gtest/gtest.h>

#include <functional>
#include <numeric>
#include <thread>

#include "comm/thread_comm.h"
#include "parallel/cp_cache.h"
#include "parallel/cp_heads.h"
#include "parallel/cp_rows.h"
#include "parallel/split_plan.h"
#include "quant/cache_write.h"
#include "support.h"

namespace sparsespan {
namespace {

constexpr const char* kSchemes[] = {"zigzag",     "zigzag_padded", "ceil_chunk",
                                    "interleave", "contiguous",    "contiguous_flat"};
constexpr std::int64_t kPage = 4;

void on_ranks(int ranks, const std::function<void(Communicator&)>& body) {
  auto comms = ThreadComm::make(ranks);
  std::vector<std::thread> team;
  for (auto& comm : comms) {
    team.emplace_back([&comm, &body] {
      comm->set_timeout(20);
      body(*comm);
      comm->close();
    });
  }
  for (auto& thread : team) thread.join();
}

PlanPtr plan_of(const std::string& scheme, const Ints& cu, std::int64_t ranks) {
  test::Array<std::int64_t> starts({static_cast<std::int64_t>(cu.size())});
  starts.data = cu;
  test::Array<std::int64_t> prefix({static_cast<std::int64_t>(cu.size()) - 1});
  return split_plan({scheme, starts.tensor(), prefix.tensor(), ranks, {}, std::nullopt, "native"});
}

template <class T>
test::Array<T> cut(const CpPlan& plan, test::Array<T>& x, int rank) {
  auto shape = x.shape;
  shape[0] = plan.counts()[rank];
  test::Array<T> out(shape);
  split_rows(plan, {.x = x.tensor(), .out = out.tensor(), .rank = rank});
  return out;
}

class CpOps : public ::testing::TestWithParam<int> {};

TEST_P(CpOps, GatheringWhatWasSplitIsTheBatch) {
  const int n = GetParam();
  for (const char* scheme : kSchemes) {
    const auto plan = plan_of(scheme, {0, 13, 13, 20}, n);
    auto x = test::random_array<float>({20, 3}, 1);
    on_ranks(n, [&](Communicator& comm) {
      auto mine = cut(*plan, x, comm.rank());
      test::Array<float> all({20, 3}, -1);
      test::Array<float> last({3, 3}, -1);
      auto whole = igather_rows(comm, plan, {.x = mine.tensor(), .out = all.tensor()}, {});
      auto ends = igather_rows(comm, plan, {.x = mine.tensor(), .out = last.tensor(), .last = true}, {});
      (comm.rank() % 2 == 0 ? whole : ends)->wait();
      (comm.rank() % 2 == 0 ? ends : whole)->wait();
      EXPECT_EQ(all.data, x.data) << scheme;
      EXPECT_EQ(last.data[0], x.data[12 * 3]) << scheme;
      EXPECT_EQ(last.data[3], 0.0F) << scheme;  // the request without rows
      EXPECT_EQ(last.data[8], x.data[59]) << scheme;
    });
  }
}

TEST_P(CpOps, EveryRankWritesWhatOneRankWouldWrite) {
  const int n = GetParam();
  auto c_kv = test::random_array<BFloat16>({20, 512}, 2);
  auto k_pe = test::random_array<BFloat16>({20, 64}, 3);
  auto k_index = test::random_array<BFloat16>({20, 128}, 4);
  test::Array<std::int64_t> slots({20});
  for (std::int64_t i = 0; i < 20; ++i) slots.data[i] = i * 7 % 24;
  slots.data[5] = -1;
  test::Array<std::uint8_t> kv({6, kPage, 656}, 9);
  test::Array<std::uint8_t> index({6, kPage, 132}, 9);
  concat_and_cache_mla({.c_kv = c_kv.tensor(),
                        .k_pe = k_pe.tensor(),
                        .cache = kv.tensor(),
                        .slot_mapping = slots.tensor(),
                        .page_size = kPage});
  indexer_k_quant_and_cache(
      {.k = k_index.tensor(), .cache = index.tensor(), .slot_mapping = slots.tensor(), .page_size = kPage});
  for (const char* scheme : kSchemes) {
    const auto plan = plan_of(scheme, {0, 13, 13, 20}, n);
    on_ranks(n, [&](Communicator& comm) {
      auto c = cut(*plan, c_kv, comm.rank());
      auto p = cut(*plan, k_pe, comm.rank());
      auto k = cut(*plan, k_index, comm.rank());
      test::Array<std::uint8_t> my_kv({6, kPage, 656}, 9);
      test::Array<std::uint8_t> my_index({6, kPage, 132}, 9);
      GatherKvParams params;
      params.c_kv = c.tensor(), params.k_pe = p.tensor(), params.k_index = k.tensor();
      params.kv_cache = my_kv.tensor(), params.index_cache = my_index.tensor();
      params.slot_mapping = slots.tensor(), params.page_size = kPage;
      igather_kv_and_cache(comm, plan, params, {})->wait();
      EXPECT_EQ(my_kv.data, kv.data) << scheme;
      EXPECT_EQ(my_index.data, index.data) << scheme;
      EXPECT_EQ(comm.ledger()->counter(CommOp::all_gather).bytes, (n - 1) * plan->padded_len() * 788);
    });
  }
}

TEST_P(CpOps, HeadsThereAndBack) {
  const int n = GetParam();
  on_ranks(n, [n](Communicator& comm) {
    auto x = test::random_array<float>({3, 8, 2}, 10 + static_cast<unsigned>(comm.rank()));
    test::Array<float> z({3 * n, 8 / n, 2});
    test::Array<float> back({3, 8, 2});
    iexchange_heads(comm, {.x = x.tensor(), .out = z.tensor()}, {})->wait();
    iexchange_heads(comm, {.x = z.tensor(), .out = back.tensor(), .back = true}, {})->wait();
    EXPECT_EQ(back.data, x.data);
  });
}

TEST_P(CpOps, PlansOfDifferentBatchesAreTold) {
  const int n = GetParam();
  if (n == 1) return;
  const auto one = plan_of("interleave", {0, 16}, n);
  const auto other = plan_of("interleave", {0, 7, 16}, n);
  on_ranks(n, [&](Communicator& comm) {
    const auto& plan = comm.rank() == 1 ? other : one;
    test::Array<float> x({plan->counts()[comm.rank()]});
    test::Array<float> all({16}, -1);
    EXPECT_THROW(igather_rows(comm, plan, {.x = x.tensor(), .out = all.tensor()}, {})->wait(), rank_mismatch);
    EXPECT_EQ(all.data[0], -1.0F);
  });
}

INSTANTIATE_TEST_SUITE_P(Sizes, CpOps, ::testing::Values(1, 2, 4, 8));

}  // namespace
}  // namespace sparsespan
