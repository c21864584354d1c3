#include "indexer/select.h"

#include <gtest/gtest.h>

#include <limits>

#include "indexer/mqa_logits.h"
#include "indexer/paged_mqa_logits.h"
#include "indexer/slots.h"
#include "indexer/topk.h"
#include "support.h"

namespace sparsespan {
namespace {

using test::Array;

constexpr std::int64_t kRows = 5, kKeys = 9000, kHeads = 3, kDim = 128, kBest = 300;

struct Case {
  Array<BFloat16> q = test::random_array<BFloat16>({kRows, kHeads, kDim}, 1);
  Array<BFloat16> k = test::random_array<BFloat16>({kKeys, kDim}, 2);
  Array<float> weights = test::random_array<float>({kRows, kHeads}, 3);
  Array<std::int32_t> ks{{kRows}};
  Array<std::int32_t> ke{{kRows}};
  Array<std::int32_t> lengths{{kRows}};
  Array<std::int32_t> best{{kRows, kBest}};

  Case() {
    for (int t = 0; t < kRows; ++t) {
      ks.data[t] = 20 * t;
      ke.data[t] = t == 2 ? 100 : static_cast<int>(kKeys) - t;
      lengths.data[t] = ke.data[t] - ks.data[t];
    }
  }
  Array<std::int32_t> two_steps() {
    Array<float> scores({kRows, kKeys});
    Array<std::int32_t> out({kRows, kBest});
    mqa_logits({.q = q.tensor(),
                .k = k.tensor(),
                .weights = weights.tensor(),
                .ks = ks.tensor(),
                .ke = ke.tensor(),
                .out = scores.tensor()});
    topk({.scores = scores.tensor(),
          .k = kBest,
          .lengths = lengths.tensor(),
          .row_starts = ks.tensor(),
          .out = out.tensor()});
    return out;
  }
  SelectParams params(int threads) {
    return {.q = q.tensor(),
            .k = k.tensor(),
            .weights = weights.tensor(),
            .ks = ks.tensor(),
            .ke = ke.tensor(),
            .out = best.tensor(),
            .topk = kBest,
            .threads = threads};
  }
};

TEST(Select, EqualsTopkOfLogitsForAnyThreads) {
  for (const Isa isa : test::available_isas()) {
    const test::IsaScope scope(isa);
    Case c;
    const auto expected = c.two_steps();
    for (const int threads : {1, 2, 3, 7}) {
      select(c.params(threads));
      EXPECT_EQ(c.best.data, expected.data) << threads << " threads";
    }
  }
}

TEST(Select, RefusesNanWithTheLowestRowAndColumn) {
  Case c;
  c.k.data[8000 * kDim] = to_bfloat16(std::numeric_limits<float>::quiet_NaN());
  for (const int threads : {1, 4}) {
    try {
      select(c.params(threads));
      FAIL() << "not refused";
    } catch (const std::invalid_argument& e) {
      EXPECT_NE(std::string(e.what()).find("row 0, column 8000"), std::string::npos) << e.what();
    }
    for (const int index : c.best.data) EXPECT_EQ(index, -1);
  }
}

// The same keys on shuffled pages: page of block b is (7 * b + 3) mod pages.
TEST(PagedSelect, NamesTheTokensThatSelectNames) {
  constexpr std::int64_t kPage = 100;
  constexpr std::int64_t kPages = kKeys / kPage;
  Case c;
  Array<BFloat16> cache({kPages, kPage, kDim});
  Array<std::int64_t> table({1, kPages});
  for (std::int64_t b = 0; b < kPages; ++b) {
    table.data[b] = (7 * b + 3) % kPages;
    std::copy_n(c.k.data.begin() + b * kPage * kDim, kPage * kDim, cache.data.begin() + table.data[b] * kPage * kDim);
  }
  Array<std::int32_t> lens({1}, kKeys);
  for (int t = 0; t < kRows; ++t) {
    c.ks.data[t] = 0;
    c.ke.data[t] = static_cast<int>(kKeys - kRows) + t + 1;
  }
  select(c.params(2));
  Array<std::int32_t> best({kRows, kBest});
  paged_select({.q = c.q.tensor(),
                .kv_cache = cache.tensor(),
                .weights = c.weights.tensor(),
                .context_lens = lens.tensor(),
                .block_table = table.tensor(),
                .out = best.tensor(),
                .page_size = kPage,
                .topk = kBest,
                .layout = "index_bf16",
                .threads = 3});
  EXPECT_EQ(best.data, c.best.data);
  Array<std::int32_t> requests({kRows}, 0);
  Array<std::int32_t> slots({kRows, kBest});
  to_slots({.indices = best.tensor(),
            .row_to_request = requests.tensor(),
            .block_table = table.tensor(),
            .out = slots.tensor(),
            .page_size = kPage});
  for (std::size_t i = 0; i < slots.data.size(); ++i) {
    const int p = best.data[i];
    EXPECT_EQ(slots.data[i], table.data[p / kPage] * kPage + p % kPage);
  }
  requests.data[3] = 1;
  EXPECT_THROW(to_slots({.indices = best.tensor(),
                         .row_to_request = requests.tensor(),
                         .block_table = table.tensor(),
                         .out = slots.tensor(),
                         .page_size = kPage}),
               std::out_of_range);
}

}  // namespace
}  // namespace sparsespan
