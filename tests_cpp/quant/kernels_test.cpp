#include "kernels/quant.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "quant/scale.h"
#include "support.h"

namespace sparsespan {
namespace {

std::uint8_t encode_one(float x, float scale = 1.0F) {
  std::uint8_t code = 0;
  quant_kernels().encode_e4m3(&x, false, scale, &code, 1);
  return code;
}

TEST(QuantKernels, AllCodesRoundTrip) {
  for (const Isa isa : test::available_isas()) {
    const test::IsaScope scope(isa);
    for (int code = 0; code < 256; ++code) {
      if ((code & 0x7F) == 0x7F) continue;  // NaN
      const auto byte = static_cast<std::uint8_t>(code);
      float value = -1.0F;
      const float scale = 4.0F;
      quant_kernels().decode_rows({&byte, kE4M3Table.data(), &scale, 1, 1, &value, false});
      EXPECT_EQ(value, 4.0F * to_float(Float8E4M3{byte}));
      EXPECT_EQ(encode_one(value, 4.0F), code);
    }
  }
}

TEST(QuantKernels, TiesGoToTheEvenCodeAndNeighboursToTheNearest) {
  for (int code = 0; code < 0x7E; ++code) {
    const float low = kE4M3Table[code];
    const float tie = low + (kE4M3Table[code + 1] - low) / 2;
    const int even = code % 2 == 0 ? code : code + 1;
    for (const int sign : {0, 0x80}) {
      const float s = sign == 0 ? 1.0F : -1.0F;
      EXPECT_EQ(encode_one(s * tie), even | sign);
      EXPECT_EQ(encode_one(s * std::nextafter(tie, 0.0F)), code | sign);
      EXPECT_EQ(encode_one(s * std::nextafter(tie, 1e9F)), (code + 1) | sign);
    }
  }
  EXPECT_EQ(encode_one(-0.0F), 0x80);
  EXPECT_EQ(encode_one(449.0F), 0x7E);
  EXPECT_EQ(encode_one(-1e30F), 0xFE);
}

// The kernel has a rounding of its own because ISA files may not include core/types.h: it must be the same one.
TEST(QuantKernels, RoundsAsTheCoreTypeDoes) {
  std::mt19937 engine(11);
  std::vector<float> x;
  for (std::uint32_t top = 0; top < 0x7F80; ++top) {  // every exponent, bits around each rounding boundary
    const auto any = static_cast<std::uint32_t>(engine() & 0xFFFFU);
    for (const std::uint32_t low : {0x0000U, 0x0001U, 0x7FFFU, 0x8000U, 0x8001U, 0xFFFFU, any}) {
      x.push_back(std::bit_cast<float>(top << 16 | low));
      x.push_back(-x.back());
    }
  }
  std::vector<std::uint8_t> codes(x.size());
  for (const Isa isa : test::available_isas()) {
    const test::IsaScope scope(isa);
    quant_kernels().encode_e4m3(x.data(), false, 1.0F, codes.data(), static_cast<std::int64_t>(x.size()));
    for (std::size_t i = 0; i < x.size(); ++i) ASSERT_EQ(codes[i], to_float8_e4m3(x[i]).bits) << x[i];
  }
}

// Every finite bfloat16, alone in the 16-bit way and mixed with what sends its neighbours the long one.
TEST(QuantKernels, EveryHalfIsRoundedAsTheCoreTypeDoes) {
  std::vector<BFloat16> x;
  for (std::uint32_t bits = 0; bits < 0x10000U; ++bits) {
    if ((bits & 0x7F80U) != 0x7F80U) x.push_back({static_cast<std::uint16_t>(bits)});
  }
  const auto n = static_cast<std::int64_t>(x.size());
  std::vector<BFloat16> shuffled = x;
  std::shuffle(shuffled.begin(), shuffled.end(), std::mt19937(12));
  std::vector<std::uint8_t> codes(x.size());
  for (const Isa isa : test::available_isas()) {
    const test::IsaScope scope(isa);
    for (const float scale : {1.0F, 0x1p-22F, 0x1p-5F, 0x1p9F, 0x1p119F, 0x1p-99F, 0x1p-126F, 0.7F}) {
      for (const auto* input : {&x, &shuffled}) {
        quant_kernels().encode_e4m3(input->data(), true, scale, codes.data(), n);
        for (std::size_t i = 0; i < codes.size(); ++i) {
          ASSERT_EQ(codes[i], to_float8_e4m3(to_float((*input)[i]) / scale).bits) << (*input)[i].bits << " / " << scale;
        }
      }
    }
  }
}

// Tiles of bfloat16 of every kind: usual, of all magnitudes (subnormal codes), with zeros, all zero, with what is no
// number; five in a row, so that groups of tiles have a rest, and rows with room between them.
TEST(QuantKernels, RowsAreTilesOneByOne) {
  constexpr std::int64_t kRows = 40;
  constexpr std::int64_t kTiles = 5;
  std::mt19937 engine(13);
  std::normal_distribution<float> normal;
  for (const std::int64_t tile : {128, 64, 24}) {
    const std::int64_t n = kTiles * tile;
    std::vector<BFloat16> x(kRows * (n + 3));
    for (std::size_t i = 0; i < x.size(); ++i) {
      const std::size_t kind = i / tile % 7;
      const float magnitude = kind == 1 ? std::ldexp(1.0F, static_cast<int>(engine() % 60) - 40) : 1.0F;
      x[i] = to_bfloat16((kind == 2 && i % 3 != 0) || kind == 3 ? -0.0F : magnitude * normal(engine));
      if (kind == 4 && engine() % 200 == 0) x[i] = to_bfloat16(engine() % 2 == 0 ? NAN : -INFINITY);
      if (kind == 5 && engine() % 50 == 0) x[i] = {static_cast<std::uint16_t>(engine() % 0x180)};
    }
    for (const Isa isa : test::available_isas()) {
      const test::IsaScope scope(isa);
      for (const auto rule :
           {ScaleRule::official, ScaleRule::official_f32, ScaleRule::flashmla, ScaleRule::sglang, ScaleRule::vllm}) {
        std::vector<std::uint8_t> codes(kRows * (n + 7), 0xAA);
        std::vector<float> scales(kRows * (kTiles + 1), -1.0F);
        quant_kernels().encode_rows({.x = x.data(),
                                     .bfloat16 = true,
                                     .rule = rule,
                                     .tile = tile,
                                     .n = n,
                                     .codes = codes.data(),
                                     .scales = scales.data(),
                                     .rows = kRows,
                                     .x_stride = (n + 3) * 2,
                                     .codes_stride = n + 7,
                                     .scales_stride = (kTiles + 1) * 4});
        for (std::int64_t t = 0; t < kRows * kTiles; ++t) {
          const BFloat16* from = x.data() + t / kTiles * (n + 3) + t % kTiles * tile;
          float amax = 0.0F;
          bool finite = true;
          for (std::int64_t i = 0; i < tile; ++i) {
            amax = std::max(amax, std::fabs(to_float(from[i])));
            finite = finite && std::isfinite(to_float(from[i]));
          }
          const float scale = finite ? tile_scale(rule, amax) : 1.0F;
          ASSERT_EQ(scales[t / kTiles * (kTiles + 1) + t % kTiles], scale);
          const std::uint8_t* got = codes.data() + t / kTiles * (n + 7) + t % kTiles * tile;
          for (std::int64_t i = 0; i < tile; ++i) {
            ASSERT_EQ(got[i], finite ? to_float8_e4m3(to_float(from[i]) / scale).bits : 0x7F) << name_of(isa);
          }
        }
        for (std::int64_t row = 0; row < kRows; ++row) ASSERT_EQ(codes[row * (n + 7) + n], 0xAA);  // between the rows
      }
    }
  }
}

TEST(QuantKernels, EveryCodeTimesEveryKindOfScaleIsRoundedOnce) {
  std::vector<std::uint8_t> codes(2 * 256 + 37);
  for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::uint8_t>(i);
  const auto n = static_cast<std::int64_t>(codes.size());
  for (const float scale :
       {1.0F, 0.75F, 1.0F / 3, 0.0F, 0x1p-117F, 0x1.8p-118F, 0x1p-126F, 0x1p-140F, 3e38F, INFINITY}) {
    const std::vector<float> scales(3, scale);
    for (const Isa isa : test::available_isas()) {
      const test::IsaScope scope(isa);
      std::vector<BFloat16> narrow(codes.size());
      std::vector<float> wide(codes.size());
      quant_kernels().decode_rows({codes.data(), kE4M3Table.data(), scales.data(), 200, n, narrow.data(), true});
      quant_kernels().decode_rows({codes.data(), kE4M3Table.data(), scales.data(), 200, n, wide.data(), false});
      for (std::size_t i = 0; i < codes.size(); ++i) {
        const float expected = kE4M3Table[codes[i]] * scale;
        if (std::isnan(kE4M3Table[codes[i]])) {
          ASSERT_EQ(narrow[i].bits, 0x7FC0) << name_of(isa);  // the same NaN at every level
        } else if (std::isnan(expected)) {
          ASSERT_TRUE(std::isnan(to_float(narrow[i])) && std::isnan(wide[i]));
        } else {
          ASSERT_EQ(narrow[i].bits, to_bfloat16(expected).bits) << name_of(isa) << " " << scale << " " << i;
          ASSERT_EQ(std::bit_cast<std::uint32_t>(wide[i]), std::bit_cast<std::uint32_t>(expected));
        }
      }
    }
  }
}

TEST(QuantKernels, CopyOutCopiesAnyBytes) {
  std::vector<std::uint8_t> from(700);
  for (std::size_t i = 0; i < from.size(); ++i) from[i] = static_cast<std::uint8_t>(i * 7 + 1);
  for (const Isa isa : test::available_isas()) {
    const test::IsaScope scope(isa);
    for (const int at : {0, 1, 16, 63}) {
      for (const int n : {0, 3, 64, 127, 500}) {
        std::vector<std::uint8_t> to(700, 0);
        quant_kernels().copy_out(from.data() + 5, to.data() + at, n);
        quant_kernels().fence();
        EXPECT_TRUE(std::equal(from.begin() + 5, from.begin() + 5 + n, to.begin() + at));
        EXPECT_EQ(to[at + n], 0);
        EXPECT_EQ(std::count_if(to.begin(), to.begin() + at, [](std::uint8_t b) { return b != 0; }), 0);
      }
    }
  }
}

TEST(QuantKernels, AmaxSeesNanAndInfinity) {
  const float inf = INFINITY;
  std::vector<float> x(131, -0.5F);
  const auto amax = [&] { return quant_kernels().amax_bits(x.data(), false, static_cast<std::int64_t>(x.size())); };
  EXPECT_EQ(amax(), std::bit_cast<std::uint32_t>(0.5F));
  for (const std::size_t at : {0U, 64U, 130U}) {
    for (const float bad : {inf, -inf, NAN, -NAN}) {
      x[at] = bad;
      EXPECT_GE(amax(), 0x7F800000U);
    }
    x[at] = 3.0F;
    EXPECT_EQ(amax(), std::bit_cast<std::uint32_t>(3.0F));
  }
  EXPECT_EQ(quant_kernels().amax_bits(x.data(), false, 0), 0U);
}

TEST(TileScale, CeilTwoGoesByTheBits) {
  for (int e = -126; e < 127; ++e) {
    const float power = std::ldexp(1.0F, e);
    EXPECT_EQ(ceil2(power), power);
    EXPECT_EQ(ceil2(std::nextafter(power, 1e38F)), 2.0F * power);
    EXPECT_EQ(ceil2(std::nextafter(2.0F * power, 0.0F)), 2.0F * power);
  }
}

// operators.md 0.5: amax * (1/448) and amax / 448 differ by an ulp for many amax, but never in the power of two.
TEST(TileScale, MultiplyingAndDividingGiveOnePowerOfTwo) {
  for (std::uint32_t mantissa = 0; mantissa < (1U << 23); mantissa += 97) {
    const auto amax = std::bit_cast<float>(0x3F800000U | mantissa);
    ASSERT_EQ(tile_scale(ScaleRule::official, amax), ceil2(amax / 448.0F));
  }
}

TEST(TileScale, AlwaysFiniteAndPositive) {
  const float smallest = std::numeric_limits<float>::denorm_min();
  for (const auto rule :
       {ScaleRule::official, ScaleRule::official_f32, ScaleRule::flashmla, ScaleRule::sglang, ScaleRule::vllm}) {
    for (const float amax : {0.0F, smallest, 1e-40F, 1e-4F, 1.0F, 3.4028234e38F}) {
      const float scale = tile_scale(rule, amax);
      EXPECT_GT(scale, 0.0F);
      EXPECT_TRUE(std::isfinite(scale));
    }
  }
  EXPECT_EQ(tile_scale(ScaleRule::flashmla, 0.0F), 0x1p-13F);
  EXPECT_EQ(tile_scale(ScaleRule::official, 0.0F), 0x1p-22F);
  EXPECT_EQ(tile_scale(ScaleRule::sglang, 896.0F), 2.0F);
  EXPECT_EQ(tile_scale(ScaleRule::vllm, 0.0F), 0x1p-126F);
}

}  // namespace
}  // namespace sparsespan
