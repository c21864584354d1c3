#include <gtest/gtest.h>

#include <cmath>

#include "quant/act_quant.h"
#include "quant/cache_read.h"
#include "quant/cache_write.h"
#include "support.h"

namespace sparsespan {
namespace {

using test::Array;

// Latent: 448 in the first tile (scale 1), 896 in the second (scale 2), zeros behind; rope: 1, 2, 3, ...
struct Token {
  Array<float> c_kv{{1, 512}};
  Array<float> k_pe{{1, 64}};
  Token() {
    c_kv.data[0] = 448.0F;
    c_kv.data[1] = -1.0F;
    c_kv.data[2] = 0x1p-9F;
    c_kv.data[128] = 896.0F;
    for (int i = 0; i < 64; ++i) k_pe.data[i] = static_cast<float>(i + 1);
  }
};

Array<std::int64_t> slot(std::int64_t s) { return Array<std::int64_t>({1}, s); }

TEST(ConcatAndCacheMla, Fp8TokenByteForByte) {
  Token token;
  Array<std::uint8_t> cache({2, 3, 656}, 0xEE);
  auto slots = slot(4);
  concat_and_cache_mla({.c_kv = token.c_kv.tensor(),
                        .k_pe = token.k_pe.tensor(),
                        .cache = cache.tensor(),
                        .slot_mapping = slots.tensor(),
                        .layout = KvLayout::fp8_656,
                        .page_size = 3});
  std::vector<std::uint8_t> expected(2 * 3 * 656, 0xEE);
  std::uint8_t* t = expected.data() + 4 * 656;
  std::fill_n(t, 512, std::uint8_t{0});
  t[0] = 0x7E;
  t[1] = 0xB8;
  t[2] = 0x01;
  t[128] = 0x7E;
  const float scales[4] = {1.0F, 2.0F, 0x1p-22F, 0x1p-22F};
  std::memcpy(t + 512, scales, 16);
  for (int i = 0; i < 64; ++i) {
    const std::uint16_t bits = to_bfloat16(static_cast<float>(i + 1)).bits;
    std::memcpy(t + 528 + 2 * i, &bits, 2);
  }
  EXPECT_TRUE(test::same_bits(cache.data, expected));
}

template <class T>
void check_plain_token(KvLayout layout) {
  Token token;
  Array<T> cache({2, 3, 576});
  auto slots = slot(5);
  concat_and_cache_mla({.c_kv = token.c_kv.tensor(),
                        .k_pe = token.k_pe.tensor(),
                        .cache = cache.tensor(),
                        .slot_mapping = slots.tensor(),
                        .layout = layout,
                        .page_size = 3});
  Array<T> expected({6, 576});
  for (int i = 0; i < 512; ++i) test::assign(expected.data[5 * 576 + i], token.c_kv.data[i]);
  for (int i = 0; i < 64; ++i) test::assign(expected.data[5 * 576 + 512 + i], token.k_pe.data[i]);
  EXPECT_TRUE(test::same_bits(cache.data, expected.data));
}

TEST(ConcatAndCacheMla, PlainTokens) {
  check_plain_token<float>(KvLayout::f32_576);
  check_plain_token<BFloat16>(KvLayout::bf16_576);
}

TEST(IndexerKQuantAndCache, ScalesLieAtThePagesTail) {
  Array<float> k({1, 128});
  k.data[0] = 1792.0F;  // 448 * 4
  k.data[127] = -4.0F;
  Array<std::uint8_t> cache({2, 3 * 132}, 0xEE);
  auto slots = slot(4);  // page 1, place 1
  indexer_k_quant_and_cache({.k = k.tensor(), .cache = cache.tensor(), .slot_mapping = slots.tensor(), .page_size = 3});
  std::vector<std::uint8_t> expected(2 * 3 * 132, 0xEE);
  std::uint8_t* page = expected.data() + 3 * 132;
  std::fill_n(page + 128, 128, std::uint8_t{0});
  page[128] = 0x7E;
  page[255] = 0xB8;
  const float scale = 4.0F;
  std::memcpy(page + 3 * 128 + 4, &scale, 4);
  EXPECT_TRUE(test::same_bits(cache.data, expected));
}

TEST(ConcatAndCacheMla, ARefusalWritesNothing) {
  auto c_kv = test::random_array<float>({5, 512}, 3);
  auto k_pe = test::random_array<float>({5, 64}, 4);
  Array<std::uint8_t> cache({2, 3, 656}, 0xEE);
  const auto before = cache.data;
  Array<std::int32_t> slots({5});
  ConcatAndCacheMlaParams p{.c_kv = c_kv.tensor(),
                            .k_pe = k_pe.tensor(),
                            .cache = cache.tensor(),
                            .slot_mapping = slots.tensor(),
                            .layout = KvLayout::fp8_656,
                            .page_size = 3};
  for (const int bad : {6, -2, 0}) {
    slots.data = {0, 1, 2, 3, bad};
    if (bad == 0) {
      EXPECT_THROW(concat_and_cache_mla(p), std::invalid_argument);
    } else {
      EXPECT_THROW(concat_and_cache_mla(p), std::out_of_range);
    }
  }
  slots.data = {0, 1, 2, 3, 4};
  c_kv.data[4 * 512 + 511] = NAN;
  EXPECT_THROW(concat_and_cache_mla(p), std::invalid_argument);
  EXPECT_TRUE(test::same_bits(cache.data, before));
  slots.data[4] = -1;
  EXPECT_NO_THROW(concat_and_cache_mla(p));
}

TEST(ReadKv, GivesBackWhatWasWrittenAtAnyThreadCount) {
  for (const auto layout : {KvLayout::f32_576, KvLayout::bf16_576, KvLayout::fp8_656}) {
    const int rows = 70;
    auto c_kv = test::random_array<BFloat16>({rows, 512}, 5);
    auto k_pe = test::random_array<BFloat16>({rows, 64}, 6);
    Array<std::uint8_t> memory({8, 9 * layout_info(layout).bytes_per_token()});
    Tensor cache = memory.tensor();
    cache.dtype = layout_info(layout).storage;
    cache.shape[1] /= size_of(cache.dtype);
    cache.strides[0] /= size_of(cache.dtype);
    Array<std::int64_t> slots({rows});
    for (int t = 0; t < rows; ++t) slots.data[t] = (t * 29) % 72;
    std::vector<BFloat16> first;
    for (const int threads : {1, 2, 3}) {
      concat_and_cache_mla({.c_kv = c_kv.tensor(),
                            .k_pe = k_pe.tensor(),
                            .cache = cache,
                            .slot_mapping = slots.tensor(),
                            .layout = layout,
                            .page_size = 9,
                            .rule = ScaleRule::vllm,
                            .threads = threads});
      Array<BFloat16> out({rows, 576});
      Array<float> wide({rows, 576});
      const bool f32 = layout == KvLayout::f32_576;
      read_kv({.cache = cache,
               .slots = slots.tensor(),
               .out = f32 ? wide.tensor() : out.tensor(),
               .layout = layout,
               .page_size = 9,
               .threads = threads});
      for (std::size_t i = 0; f32 && i < wide.data.size(); ++i) out.data[i] = to_bfloat16(wide.data[i]);
      if (first.empty()) first = out.data;
      EXPECT_TRUE(test::same_bits(out.data, first));
      for (int i = 0; i < rows * 576; ++i) {
        const float want =
            to_float(i % 576 < 512 ? c_kv.data[i / 576 * 512 + i % 576] : k_pe.data[i / 576 * 64 + i % 576 - 512]);
        ASSERT_NEAR(to_float(out.data[i]), want, layout == KvLayout::fp8_656 ? 0.07 * std::abs(want) + 0.01 : 0.0);
      }
    }
  }
}

TEST(GatherIndexerK, NeverReadsTheTablePastTheLength) {
  auto k = test::random_array<float>({8, 128}, 9);
  Array<std::uint8_t> cache({4, 2, 132});
  Array<std::int64_t> slots({8});
  for (int t = 0; t < 8; ++t) slots.data[t] = 7 - t;
  indexer_k_quant_and_cache({.k = k.tensor(), .cache = cache.tensor(), .slot_mapping = slots.tensor(), .page_size = 2});
  Array<std::int32_t> table({2, 3}, 1 << 30);
  table.data[0] = 3;
  table.data[3] = 0;
  table.data[4] = 3;  // shared with request 0
  Array<std::int32_t> cu({3});
  cu.data = {0, 1, 5};
  Array<Float8E4M3> codes({5, 128});
  Array<float> scale({5});
  gather_indexer_k({.cache = cache.tensor(),
                    .block_table = table.tensor(),
                    .cu_seq_lens = cu.tensor(),
                    .k = codes.tensor(),
                    .scale = scale.tensor(),
                    .page_size = 2});
  const int rows[5] = {1, 7, 6, 1, 0};  // slot 6 holds row 1; slots 0, 1, 6, 7 hold rows 7, 6, 1, 0
  Array<Float8E4M3> expected({8, 128});
  Array<float> expected_scale({8, 1});
  act_quant({.x = k.tensor(), .y = expected.tensor(), .scale = expected_scale.tensor(), .rule = ScaleRule::official});
  for (int s = 0; s < 5; ++s) {
    EXPECT_EQ(scale.data[s], expected_scale.data[rows[s]]);
    EXPECT_EQ(std::memcmp(&codes.data[s * 128], &expected.data[rows[s] * 128], 128), 0);
  }
}

}  // namespace
}  // namespace sparsespan
