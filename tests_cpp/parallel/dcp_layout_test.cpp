#include "parallel/dcp_layout.h"

#include <gtest/gtest.h>

#include <limits>

#include "parallel/dcp_capacity.h"
#include "parallel/dcp_gather.h"
#include "parallel/dcp_remap.h"
#include "parallel/dcp_tables.h"
#include "support.h"

namespace sparsespan {
namespace {

using test::Array;

Array<std::int32_t> ints(std::vector<std::int64_t> shape, std::vector<std::int32_t> values) {
  Array<std::int32_t> a(std::move(shape));
  a.data = std::move(values);
  return a;
}

TEST(DcpLayout, MapsAreABijectionForEverySmallLayout) {
  for (std::int64_t s = 1; s <= 5; ++s) {
    for (std::int64_t n = 1; n <= 9; ++n) {
      const DcpLayout layout(s, n, 2 * s);
      std::vector<std::int64_t> held(static_cast<std::size_t>(n), 0);
      for (std::int64_t p = 0; p < 200; ++p) {
        const auto r = layout.owner(p);
        ASSERT_EQ(layout.local(p), held[r]++);  // rows of a rank are filled in order, without a hole
        ASSERT_EQ(layout.logical(r, layout.local(p)), p);
        for (std::int64_t q = 0; q < n; ++q) ASSERT_EQ(layout.local_len(p + 1, q), held[q]);
      }
    }
  }
}

TEST(DcpLayout, NamesItself) {
  const DcpLayout layout(1, 4, 64);
  EXPECT_EQ(layout.text(), "dcp_layout(interleave=1, world_size=4, page_size=64)");
  EXPECT_EQ(layout.fingerprint().size(), 16U);
  EXPECT_NE(layout.fingerprint(), DcpLayout(1, 8, 64).fingerprint());
  EXPECT_EQ(layout.virtual_page_size(), 256);
}

TEST(DcpLayout, RefusesSizes) {
  EXPECT_THROW(DcpLayout(0, 1, 1), std::invalid_argument);
  EXPECT_THROW(DcpLayout(1, -1, 1), std::invalid_argument);
  EXPECT_THROW(DcpLayout(2, 2, 3), std::invalid_argument);
  EXPECT_THROW(DcpLayout(1, std::numeric_limits<std::int64_t>::max(), 2), std::invalid_argument);
}

TEST(DcpRemap, KeepsOrderAndNeverOwnsMinusOne) {
  auto p = ints({2, 6}, {0, 7, 13, 2, 9, -1, -1, -1, 3, -1, 11, 7});
  Array<std::int32_t> out({2, 6}, 99);
  Array<std::int32_t> lanes({2, 6}, 99);
  Array<std::int32_t> counts({2}, 99);
  const DcpLayout layout(1, 4, 4);
  remap_topk(layout, {.indices = p.tensor(),
                      .context_lens = {},
                      .topk_length = {},
                      .rank = 3,
                      .out = out.tensor(),
                      .lanes = lanes.tensor(),
                      .counts = counts.tensor(),
                      .threads = 2});
  EXPECT_EQ(out.data, (std::vector<std::int32_t>{1, -1, -1, -1, -1, -1, 0, 2, 1, -1, -1, -1}));
  EXPECT_EQ(lanes.data, (std::vector<std::int32_t>{7, -1, -1, -1, -1, -1, 3, 3, 7, -1, -1, -1}));
  EXPECT_EQ(counts.data, (std::vector<std::int32_t>{1, 3}));
}

// Divisions by shifts and by division agree: N = 4 takes the one, the same maps written out the other.
TEST(DcpRemap, ShiftsEqualDivisions) {
  std::mt19937 engine(3);
  std::uniform_int_distribution<std::int32_t> any(-1, std::numeric_limits<std::int32_t>::max());
  for (std::int64_t s : {1, 2, 3, 64}) {
    for (std::int64_t n : {1, 2, 3, 4, 5, 8, 16}) {
      const DcpLayout layout(s, n, s);
      Array<std::int32_t> p({3, 257});
      for (auto& x : p.data) x = any(engine);
      for (std::int64_t r = 0; r < n; ++r) {
        Array<std::int32_t> out({3, 257});
        remap_topk(layout, {.indices = p.tensor(),
                            .context_lens = {},
                            .topk_length = {},
                            .rank = r,
                            .out = out.tensor(),
                            .lanes = {},
                            .counts = {}});
        for (int t = 0; t < 3; ++t) {
          std::vector<std::int32_t> expected;
          for (int j = 0; j < 257; ++j) {
            const std::int64_t v = p.data[t * 257 + j];
            if (v >= 0 && layout.owner(v) == r) expected.push_back(static_cast<std::int32_t>(layout.local(v)));
          }
          expected.resize(257, -1);
          ASSERT_TRUE(std::equal(expected.begin(), expected.end(), out.data.begin() + t * 257)) << s << " " << n;
        }
      }
    }
  }
}

TEST(DcpRemap, RefusesBeforeItWrites) {
  auto p = ints({1, 2}, {0, -2});
  Array<std::int32_t> out({1, 2}, 99);
  const RemapTopkParams params{.indices = p.tensor(),
                               .context_lens = {},
                               .topk_length = {},
                               .rank = 0,
                               .out = out.tensor(),
                               .lanes = {},
                               .counts = {}};
  EXPECT_THROW(remap_topk(DcpLayout(1, 2, 2), params), std::out_of_range);
  EXPECT_EQ(out.data, (std::vector<std::int32_t>{99, 99}));
}

TEST(DcpTables, GoldenWrites) {
  auto v = ints({6}, {256, 257, 258, 259, 512, 513});
  const auto writes = dcp_writes(DcpLayout(1, 2, 64), v.tensor(), 1);
  EXPECT_EQ(writes.rows, (std::vector<std::int64_t>{1, 3, 5}));
  EXPECT_EQ(writes.slots, (std::vector<std::int64_t>{128, 129, 256}));
}

TEST(DcpGather, WindowsAreCutAtWholeRounds) {
  auto lengths = ints({2}, {5, 0});
  auto starts = ints({2}, {3, 1});
  const DcpLayout layout(1, 2, 4);
  const auto plan = dcp_gather_plan(layout, lengths.tensor(), starts.tensor());
  EXPECT_EQ(plan.padded, (std::vector<std::int64_t>{3, 0}));
  EXPECT_EQ(plan.source_rows, (std::vector<std::int64_t>{3, 1, 4, 2, 5}));
  EXPECT_EQ(dcp_send_rows(layout, lengths.tensor(), starts.tensor(), 0).local, (std::vector<std::int64_t>{-1, 2, 3}));
}

TEST(DcpCapacity, GainIsNotTheNumberOfRanks) {
  const auto c = dcp_capacity(DcpLayout(1, 8, 64),
                              {.memory_bytes = 1 << 30, .kv_bytes = 1152, .index_bytes = 132, .index_shards = 1});
  EXPECT_NEAR(c.gain, 4.652, 1e-3);
  EXPECT_EQ(c.tokens, c.tokens_per_rank * 8);
  EXPECT_EQ(dcp_heads(DcpLayout(1, 4, 64), 128, 8, 64).gathered, 64);
}

}  // namespace
}  // namespace sparsespan
