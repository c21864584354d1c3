#include "transform/hadamard.h"

#include <gtest/gtest.h>

#include <Eigen/Dense>
#include <bit>

#include "support.h"

namespace sparsespan {
namespace {

using test::Array;

// H[i][j] = (-1)^popcount(i & j): the Sylvester matrix written down, not built by butterflies.
Eigen::MatrixXd sylvester(int n) {
  Eigen::MatrixXd h(n, n);
  for (int i = 0; i < n; ++i) {
    for (int j = 0; j < n; ++j) h(i, j) = std::popcount(static_cast<unsigned>(i & j)) % 2 == 0 ? 1.0 : -1.0;
  }
  return h;
}

TEST(Hadamard, EqualsTheMatrixProduct) {
  for (const Isa isa : test::available_isas()) {
    const test::IsaScope scope(isa);
    for (int n : {1, 2, 4, 8, 64, 128, 512}) {
      auto x = test::random_array<float>({5, n}, 7U + n);
      Array<float> out({5, n});
      hadamard_transform({.x = x.tensor(), .out = out.tensor(), .scale = 0.25F});
      const Eigen::MatrixXd h = sylvester(n);
      for (int t = 0; t < 5; ++t) {
        const Eigen::VectorXd row = Eigen::Map<Eigen::VectorXf>(x.data.data() + t * n, n).cast<double>();
        const Eigen::VectorXd expected = 0.25 * (h * row);
        // log2(n) additions per output, each within half an ulp of the running sum.
        const double bound = 1e-6 * (1.0 + row.cwiseAbs().sum());
        for (int i = 0; i < n; ++i) EXPECT_NEAR(out.data[t * n + i], expected(i), bound);
      }
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

TEST(Hadamard, TinyHalvesHaveTheSameBitsAtEveryLevel) {
  for (const int n : {32, 64, 128, 256}) {
    for (const float scale : {1.0F, 0x1.6a09e6p-4F, 0x1p-20F, 0x1p30F, 0x1p-130F, -0.5F}) {
      auto x = tiny_values({50, n});
      std::vector<std::vector<BFloat16>> results;
      for (const Isa isa : test::available_isas()) {
        const test::IsaScope scope(isa);
        Array<BFloat16> out({50, n});
        hadamard_transform({.x = x.tensor(), .out = out.tensor(), .scale = scale});
        results.push_back(out.data);
        EXPECT_TRUE(test::same_bits(results.front(), results.back())) << name_of(isa) << " " << n << " " << scale;
      }
    }
  }
}

TEST(Hadamard, RefusesBadInput) {
  Array<float> x({2, 96});
  Array<float> out({2, 96});
  EXPECT_THROW(hadamard_transform({.x = x.tensor(), .out = out.tensor()}), std::invalid_argument);
  Array<std::int32_t> wrong({2, 64});
  Array<float> good({2, 64});
  EXPECT_THROW(hadamard_transform({.x = wrong.tensor(), .out = good.tensor()}), type_error);
  EXPECT_THROW(hadamard_transform({.x = good.tensor(), .out = good.tensor()}), std::invalid_argument);
}

}  // namespace
}  // namespace sparsespan
