// DCP on ranks that are threads: decode, merge and top-k against one rank. ThreadSanitizer looks at these.

#include "parallel/dcp_decode.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <thread>

#include "attention/sparse_mla.h"
#include "comm/thread_comm.h"
#include "indexer/topk.h"
#include "parallel/topk_exchange.h"
#include "support.h"

namespace sparsespan {
namespace {

constexpr std::int64_t kRows = 3;
constexpr std::int64_t kHeads = 8;
constexpr std::int64_t kDim = 576;
constexpr std::int64_t kKeys = 96;
constexpr std::int64_t kTopk = 40;
constexpr std::int64_t kPage = 16;
constexpr float kScale = 0.07F;

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

// One request of kKeys keys. Row 1 has two keys, row 2 none.
struct Problem {
  test::Array<float> q = test::random_array<float>({kRows, kHeads, kDim}, 1);
  test::Array<float> keys = test::random_array<float>({kKeys, kDim}, 2);
  test::Array<std::int32_t> picks{{kRows, kTopk}, -1};
  test::Array<float> out{{kRows, kHeads, 512}};
  test::Array<float> lse{{kRows, kHeads}};

  explicit Problem(std::int64_t interleave) {
    for (std::int64_t j = 0; j < kTopk; ++j) picks.data[j] = static_cast<std::int32_t>(j * 37 % kKeys);
    picks.data[kTopk + 3] = 5;
    picks.data[kTopk + 9] = 77;
    test::Array<std::int32_t> lanes({kRows, kTopk});
    for (std::size_t i = 0; i < picks.data.size(); ++i) {
      lanes.data[i] = std::max(0, picks.data[i]) / static_cast<std::int32_t>(interleave) % 8;
    }
    test::Array<float> top({kRows, kHeads});
    SparseMlaParams p{.q = q.tensor(), .q_pe = {}, .kv = keys.tensor()};
    p.indices = picks.tensor();
    p.lane_of = lanes.tensor();
    p.sm_scale = kScale;
    p.out = out.tensor();
    p.lse = lse.tensor();
    p.max_logits = top.tensor();
    sparse_mla(p);
  }

  // This rank's heads of `heads`, decoded; true when they have the bits of one rank (or are near it).
  void check(Communicator& comm, const DcpLayout& layout, DcpCombine combine) const {
    const std::int64_t heads = kHeads / comm.size();
    const std::int64_t pages = ceil_div(kKeys, layout.virtual_page_size());
    test::Array<float> cache({pages, kPage, kDim});
    for (std::int64_t p = 0; p < kKeys; ++p) {
      if (layout.owner(p) != comm.rank()) continue;
      std::copy_n(keys.data.data() + p * kDim, kDim, cache.data.data() + layout.local(p) * kDim);
    }
    test::Array<std::int32_t> table({1, pages});
    std::iota(table.data.begin(), table.data.end(), 0);
    test::Array<std::int32_t> requests({kRows});
    auto mine = q;
    auto indices = picks;
    test::Array<float> part({kRows, heads, 512});
    test::Array<float> part_lse({kRows, heads});
    DcpDecodeParams d;
    d.q = mine.tensor();
    d.q.data = mine.data.data() + comm.rank() * heads * kDim;
    d.q.shape[1] = heads;
    d.kv_cache = cache.tensor();
    d.kv_layout = KvLayout::f32_576;
    d.selection = {.indices = indices.tensor(),
                   .topk_length = {},
                   .context_lens = {},
                   .row_to_request = requests.tensor(),
                   .block_table = table.tensor()};
    d.sm_scale = kScale;
    d.combine.combine = combine;
    d.combine.out = part.tensor();
    d.combine.lse = part_lse.tensor();
    d.combine.threads = 2;
    dcp_decode(comm, layout, d);
    for (std::int64_t t = 0; t < kRows; ++t) {
      for (std::int64_t h = 0; h < heads; ++h) {
        const std::int64_t whole = t * kHeads + comm.rank() * heads + h;
        const auto* ours = part.data.data() + (t * heads + h) * 512;
        if (combine == DcpCombine::a2a) {
          EXPECT_EQ(std::memcmp(ours, out.data.data() + whole * 512, 512 * sizeof(float)), 0);
          EXPECT_EQ(std::memcmp(part_lse.data.data() + t * heads + h, lse.data.data() + whole, sizeof(float)), 0);
          continue;
        }
        for (std::int64_t c = 0; c < 512; ++c) EXPECT_NEAR(ours[c], out.data[whole * 512 + c], 2e-6);
      }
    }
  }
};

class DcpRanks : public ::testing::TestWithParam<int> {};

TEST_P(DcpRanks, DecodeIsOneRank) {
  for (const std::int64_t interleave : {1, 4, 16}) {
    const Problem problem(interleave);
    const DcpLayout layout(interleave, GetParam(), kPage);
    on_ranks(GetParam(), [&](Communicator& comm) {
      for (const auto combine : {DcpCombine::a2a, DcpCombine::ag_rs, DcpCombine::ar}) {
        problem.check(comm, layout, combine);
      }
    });
  }
}

TEST_P(DcpRanks, TopkIsOneRank) {
  constexpr std::int64_t kColumns = 200;
  constexpr std::int64_t kBest = 17;
  const int ranks = GetParam();
  auto scores = test::random_array<float>({5, kColumns}, 3);
  for (auto& s : scores.data) s = static_cast<float>(static_cast<int>(2 * s));  // many ties, both zeros
  test::Array<std::int32_t> expected({5, kBest});
  topk({.scores = scores.tensor(), .k = kBest, .lengths = {}, .row_starts = {}, .out = expected.tensor()});
  const DcpLayout layout(4, ranks, 16);
  for (const auto route : {TopkRoute::all, TopkRoute::owner}) {
    on_ranks(ranks, [&](Communicator& comm) {
      const std::int64_t columns = layout.local_len(kColumns, comm.rank());
      test::Array<float> mine({5, columns});
      for (std::int64_t t = 0; t < 5; ++t) {
        for (std::int64_t l = 0; l < columns; ++l) {
          mine.data[t * columns + l] = scores.data[t * kColumns + layout.logical(comm.rank(), l)];
        }
      }
      test::Array<std::int32_t> got({5, kBest});
      GlobalTopkParams p;
      p.scores = mine.tensor();
      p.k = kBest;
      p.out = got.tensor();
      p.route = route;
      global_topk(comm, layout, p);
      EXPECT_EQ(got.data, expected.data);
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, DcpRanks, ::testing::Values(1, 2, 4, 8));

TEST(Dcp, ARankThatFailsIsToldToTheOthers) {
  const Problem problem(1);
  const DcpLayout layout(1, 2, kPage);
  on_ranks(2, [&](Communicator& comm) {
    if (comm.rank() == 1) {
      comm.poison("rank 1 has other plans");
      return;
    }
    EXPECT_THROW(problem.check(comm, layout, DcpCombine::a2a), comm_aborted);
  });
}

}  // namespace
}  // namespace sparsespan
