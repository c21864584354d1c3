#include "transform/rope.h"

#include <gtest/gtest.h>

#include <cmath>
#include <complex>

#include "support.h"
#include "transform/yarn.h"

namespace sparsespan {
namespace {

using test::Array;

Array<float> table(std::int64_t positions, std::int64_t dim) {
  Array<float> t({positions, dim});
  yarn_cos_sin({.max_positions = positions, .dim = dim, .factor = 4.0, .original_max_position = 16, .out = t.tensor()});
  return t;
}

template <class T>
void expect_complex_product(int heads, int d, bool interleaved) {
  auto x = test::random_array<T>({6, heads, d}, 3);
  auto cos_sin = table(50, d);
  Array<std::int64_t> positions({6});
  for (int t = 0; t < 6; ++t) positions.data[t] = 49 - 7 * t;
  Array<T> out({6, heads, d});
  apply_rope({.x = x.tensor(),
              .positions = positions.tensor(),
              .cos_sin = cos_sin.tensor(),
              .out = out.tensor(),
              .interleaved = interleaved});
  const int half = d / 2;
  for (int row = 0; row < 6 * heads; ++row) {
    const float* angles = cos_sin.data.data() + positions.data[row / heads] * d;
    for (int i = 0; i < half; ++i) {
      const int a = row * d + (interleaved ? 2 * i : i);
      const int b = row * d + (interleaved ? 2 * i + 1 : i + half);
      const std::complex<double> pair(test::as_float(x.data[a]), test::as_float(x.data[b]));
      const auto expected = pair * std::complex<double>(angles[i], angles[half + i]);
      // Three float32 roundings of at most |a| + |b|; bfloat16 rounds once more.
      const double bound = 2e-7 * 2.0 * std::abs(pair) + (sizeof(T) == 2 ? std::abs(pair) / 256 : 0);
      EXPECT_NEAR(test::as_float(out.data[a]), expected.real(), bound);
      EXPECT_NEAR(test::as_float(out.data[b]), expected.imag(), bound);
    }
  }
}

// Magnitudes down to subnormal numbers, which the quick rounding of some levels would flush.
Array<BFloat16> tiny_values(std::vector<std::int64_t> shape) {
  auto x = test::random_array<BFloat16>(std::move(shape), 17);
  std::mt19937 engine(18);
  for (auto& v : x.data) {
    const auto least = engine() % 12;
    if (engine() % 2 == 0) v.bits = static_cast<std::uint16_t>((v.bits & 0x807FU) | least << 7);
    if (engine() % 9 == 0) v.bits &= 0x8000U;
  }
  return x;
}

TEST(Rope, TinyHalvesHaveTheSameBitsAtEveryLevel) {
  auto x = tiny_values({6, 9, 64});
  auto cos_sin = table(50, 64);
  Array<std::int64_t> positions({6}, 31);
  for (const bool interleaved : {false, true}) {
    std::vector<std::vector<BFloat16>> results;
    for (const Isa isa : test::available_isas()) {
      const test::IsaScope scope(isa);
      Array<BFloat16> out({6, 9, 64});
      apply_rope({.x = x.tensor(),
                  .positions = positions.tensor(),
                  .cos_sin = cos_sin.tensor(),
                  .out = out.tensor(),
                  .interleaved = interleaved});
      results.push_back(out.data);
      EXPECT_TRUE(test::same_bits(results.front(), results.back())) << name_of(isa);
    }
  }
}

TEST(Rope, EqualsTheComplexProduct) {
  for (const Isa isa : test::available_isas()) {
    const test::IsaScope scope(isa);
    for (const bool interleaved : {false, true}) {
      expect_complex_product<float>(3, 64, interleaved);
      expect_complex_product<float>(1, 10, interleaved);  // a tail shorter than a vector
      expect_complex_product<BFloat16>(2, 64, interleaved);
    }
  }
}

TEST(Rope, InPlaceEqualsOutOfPlace) {
  for (const bool interleaved : {false, true}) {
    auto x = test::random_array<BFloat16>({40, 2, 64}, 5);
    auto cos_sin = table(40, 64);
    Array<std::int32_t> positions({40});
    for (int t = 0; t < 40; ++t) positions.data[t] = t;
    Array<BFloat16> out({40, 2, 64});
    RopeParams p{.x = x.tensor(),
                 .positions = positions.tensor(),
                 .cos_sin = cos_sin.tensor(),
                 .out = out.tensor(),
                 .interleaved = interleaved};
    apply_rope(p);
    p.out = p.x;
    p.threads = 3;
    apply_rope(p);
    ASSERT_EQ(x.data.size(), out.data.size());
    for (std::size_t i = 0; i < x.data.size(); ++i) EXPECT_EQ(x.data[i].bits, out.data[i].bits);
  }
}

TEST(Rope, RefusesBadInputAndWritesNothing) {
  Array<float> x({3, 1, 8}, 1.0F);
  Array<float> out({3, 1, 8}, 7.0F);
  auto cos_sin = table(4, 8);
  Array<std::int32_t> positions({3});
  positions.data = {0, 3, 4};
  const RopeParams good{
      .x = x.tensor(), .positions = positions.tensor(), .cos_sin = cos_sin.tensor(), .out = out.tensor()};
  EXPECT_THROW(apply_rope(good), std::out_of_range);
  positions.data[2] = -1;
  EXPECT_THROW(apply_rope(good), std::out_of_range);
  for (const float v : out.data) EXPECT_EQ(v, 7.0F);
  positions.data[2] = 0;
  auto shifted = good;
  shifted.x.shape[0] = shifted.out.shape[0] = shifted.positions.shape[0] = 2;
  shifted.out.data = x.data.data() + 8;
  EXPECT_THROW(apply_rope(shifted), std::invalid_argument);
  auto odd = good;
  odd.x.shape[2] = odd.out.shape[2] = odd.cos_sin.shape[1] = 7;
  EXPECT_THROW(apply_rope(odd), std::invalid_argument);
  auto wrong = good;
  wrong.positions = x.tensor();
  EXPECT_THROW(apply_rope(wrong), type_error);
  EXPECT_NO_THROW(apply_rope(good));
}

TEST(Yarn, FrequenciesOfV32) {
  Array<double> exact({32});
  yarn_frequencies({.factor = 40.0, .exact = true, .out = exact.tensor()});
  for (int i = 0; i < 32; ++i) {
    const double plain = std::pow(10000.0, -i / 32.0);
    const double ramp = std::fmin(std::fmax((i - 10) / 13.0, 0.0), 1.0);  // low 10, high 23
    EXPECT_NEAR(exact.data[i], plain / 40 * ramp + plain * (1 - ramp), 1e-15);
  }
  EXPECT_NEAR(exact.data[16], 0.0055, 1e-15);
  EXPECT_NEAR(exact.data[22], 1.7782794e-4, 1e-11);
  EXPECT_NEAR(exact.data[31], 3.3338036e-6, 1e-12);
  EXPECT_NEAR(yarn_softmax_scale(192, 40.0, 1.0), 0.1352337789, 1e-10);
  EXPECT_THROW(yarn_frequencies({.dim = 5, .out = exact.tensor()}), std::invalid_argument);
}

TEST(Yarn, TableRowsAreTheSameForAnyNumberOfThreads) {
  Array<float> one({1000, 64});
  Array<float> three({1000, 64});
  yarn_cos_sin({.max_positions = 1000, .factor = 40.0, .out = one.tensor(), .threads = 1});
  yarn_cos_sin({.max_positions = 1000, .factor = 40.0, .out = three.tensor(), .threads = 3});
  EXPECT_TRUE(test::same_bits(one.data, three.data));
  EXPECT_EQ(one.data[0], 1.0F);
  EXPECT_EQ(one.data[32], 0.0F);
}

}  // namespace
}  // namespace sparsespan
