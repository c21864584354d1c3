#include "quant/layout.h"

#include <gtest/gtest.h>

#include "support.h"

namespace sparsespan {
namespace {

using test::Array;

TEST(Layout, FieldsTileTheTokenWithoutGaps) {
  for (const auto& info : detail::kKvLayouts) {
    int next = 0;
    int values = 0;
    for (int i = 0; i < info.num_fields; ++i) {
      const auto& field = info.fields[i];
      if (!field.page_tail) {
        EXPECT_EQ(field.offset, next) << info.name;
        next += field.bytes();
      }
      if (field.name != "scale") values += field.count;
    }
    EXPECT_EQ(next, info.token_stride());
    EXPECT_EQ(values, info.dim);
    EXPECT_EQ(info.width * size_of(info.storage), info.bytes_per_token());
    EXPECT_EQ(parse_kv_layout("test", "layout", info.name), info.layout);
  }
}

TEST(Layout, SlotsAddressTokensAndTails) {
  Array<std::uint8_t> cache({3, 4, 132});
  const PagedCache c = require_paged_cache("test", "cache", cache.tensor(), KvLayout::index_132, 4);
  EXPECT_EQ(c.slots(), 12);
  EXPECT_EQ(c.token(6) - c.data, 4 * 132 + 2 * 128);
  EXPECT_EQ(c.tail(6, 4) - c.data, 4 * 132 + 4 * 128 + 2 * 4);
}

TEST(Layout, PagesMayBePaddedTokensMayNot) {
  Array<std::uint8_t> block({3, 5, 656});
  Tensor t = block.tensor();
  t.shape[1] = 4;
  EXPECT_EQ(require_paged_cache("test", "cache", t, KvLayout::fp8_656, 4).page_stride, 5 * 656);
  t.strides[1] = 700;
  EXPECT_THROW(require_paged_cache("test", "cache", t, KvLayout::fp8_656, 4), std::invalid_argument);
}

TEST(Layout, Refusals) {
  Array<float> cache({2, 4, 576});
  EXPECT_THROW(require_paged_cache("test", "cache", cache.tensor(), KvLayout::f32_576, 0), std::invalid_argument);
  EXPECT_THROW(require_paged_cache("test", "cache", cache.tensor(), KvLayout::f32_576, 8), std::invalid_argument);
  EXPECT_THROW(require_paged_cache("test", "cache", cache.tensor(), KvLayout::bf16_576, 4), type_error);
  EXPECT_THROW(parse_kv_layout("test", "layout", "fp8_657"), std::invalid_argument);
}

}  // namespace
}  // namespace sparsespan
