#include "transform/hadamard.h"

#include <gtest/gtest.h>

#include <Eigen/Dense>
#include <bit>
#include <cstring>

#include "kernels/transform.h"
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

// Rows go through registers several at a time: what a row gives must not depend on what stands beside it, not even
// which of several NaN it returns.
TEST(Hadamard, RowsDoNotSeeTheirNeighbours) {
  for (const int n : {32, 64, 128}) {
    constexpr int kRows = 29;
    auto x = tiny_values({kRows, n});
    std::mt19937 engine(19);
    for (int t = 0; t < kRows; ++t) {
      for (int i = 0; i < n && t % 3 != 0; ++i) {  // two of three rows are ordinary or have NaN and infinities
        auto& bits = x.data[t * n + i].bits;
        bits = static_cast<std::uint16_t>((bits & 0x807FU) | (120 + engine() % 10) << 7);
        if (t % 3 == 2 && engine() % 20 == 0) bits |= 0x7F80U;
      }
    }
    for (const Isa isa : test::available_isas()) {
      const test::IsaScope scope(isa);
      Array<BFloat16> all({kRows, n});
      hadamard_transform({.x = x.tensor(), .out = all.tensor(), .scale = 0.3F});
      for (int t = 0; t < kRows; ++t) {
        Array<BFloat16> one({1, n});
        Array<BFloat16> alone({1, n});
        std::memcpy(one.data.data(), x.data.data() + t * n, 2U * n);
        hadamard_transform({.x = one.tensor(), .out = alone.tensor(), .scale = 0.3F});
        EXPECT_EQ(std::memcmp(alone.data.data(), all.data.data() + t * n, 2U * n), 0) << name_of(isa) << " " << t;
      }
    }
  }
}

// Past the caches: the same bits at every address, and not a byte beside them.
TEST(Hadamard, StreamedHalvesStayInTheirPlace) {
  constexpr int kRows = 37;
  constexpr int kGuard = 64;  // elements
  for (const int n : {32, 64, 128}) {
    auto x = test::random_array<BFloat16>({kRows, n}, 23);
    for (int i = 0; i < n; ++i) x.data[11 * n + i].bits &= 0x81FFU;  // a row of tiny values in between
    Array<BFloat16> want({kRows, n});
    std::vector<float> scratch(n);
    const auto size = static_cast<std::size_t>(kRows) * n;
    alignas(64) static BFloat16 memory[kRows * 128 + 3 * kGuard];
    for (const Isa isa : test::available_isas()) {
      const test::IsaScope scope(isa);
      for (const int offset : {0, 8, 16, 24, 2, 1}) {
        std::memset(memory, 0x5A, sizeof memory);
        BFloat16* out = memory + kGuard + offset;
        HadamardRows rows = {x.data.data(), out, n, n, kRows, n, scratch.data(), 0.7F, true, true};
        transform_kernels().hadamard(rows);
        rows.out = want.data.data();
        rows.stream = false;
        transform_kernels().hadamard(rows);
        EXPECT_EQ(std::memcmp(out, want.data.data(), 2 * size), 0) << name_of(isa) << " " << n << " " << offset;
        for (int i = 1; i <= kGuard; ++i) {
          ASSERT_EQ(out[-i].bits, 0x5A5A) << name_of(isa) << " " << n << " " << offset;
          ASSERT_EQ(out[size + i - 1].bits, 0x5A5A) << name_of(isa) << " " << n << " " << offset;
        }
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
