#include "kernels/attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "support.h"

namespace sparsespan {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

TEST(AttentionKernels, ExpIsWithinTwoUlp) {
  for (const Isa isa : test::available_isas()) {
    const test::IsaScope scope(isa);
    double worst = 0;
    std::vector<float> x;
    for (float v = 0.0F; v > -87.3F; v -= 0.00037F) x.push_back(v);
    for (float v = 1.0F; v > 1e-30F; v *= 0.77F) x.push_back(-v);
    std::vector<float> y = x;
    attention_kernels().exp(y.data(), static_cast<std::int64_t>(y.size()));
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double exact = std::exp(static_cast<double>(x[i]));
      const auto rounded = static_cast<float>(exact);
      const double ulp = std::nextafter(rounded, kInf) - static_cast<double>(rounded);
      worst = std::max(worst, std::abs(y[i] - exact) / ulp);
    }
    EXPECT_LE(worst, 2.0) << name_of(isa);
  }
}

TEST(AttentionKernels, ExpAtItsEdges) {
  for (const Isa isa : test::available_isas()) {
    const test::IsaScope scope(isa);
    std::vector<float> x = {0.0F, -0.0F, -kInf, -87.5F, -1e30F, std::numeric_limits<float>::lowest(), kNan};
    attention_kernels().exp(x.data(), static_cast<std::int64_t>(x.size()));
    EXPECT_EQ(x[0], 1.0F);
    EXPECT_EQ(x[1], 1.0F);
    for (int i = 2; i < 6; ++i) EXPECT_EQ(x[i], 0.0F) << i;
    EXPECT_TRUE(std::isnan(x[6]));
  }
}

TEST(AttentionKernels, Fp8DecodesAllCodesAsTheTypesSay) {
  std::vector<std::uint8_t> codes(256);
  for (int i = 0; i < 256; ++i) codes[i] = static_cast<std::uint8_t>(i);
  for (const Isa isa : test::available_isas()) {
    const test::IsaScope scope(isa);
    for (const float scale : {1.0F, 0.0078125F, 3.3e-5F, 1.7e4F, 0.0F, 1e-36F, -2.5F, 3e38F, kInf, kNan}) {
      std::vector<float> got(256);
      attention_kernels().load_fp8(codes.data(), scale, got.data(), 256);
      for (int i = 0; i < 256; ++i) {
        const float want = to_float(to_bfloat16(to_float(Float8E4M3{codes[i]}) * scale));
        if (std::isnan(want)) {
          EXPECT_TRUE(std::isnan(got[i])) << i << " * " << scale;
        } else {
          EXPECT_EQ(std::bit_cast<std::uint32_t>(got[i]), std::bit_cast<std::uint32_t>(want)) << i << " * " << scale;
        }
      }
    }
  }
}

TEST(AttentionKernels, Bfloat16LoadsAllPatterns) {
  std::vector<std::uint16_t> bits(65536);
  for (int i = 0; i < 65536; ++i) bits[i] = static_cast<std::uint16_t>(i);
  for (const Isa isa : test::available_isas()) {
    const test::IsaScope scope(isa);
    std::vector<float> got(65536);
    attention_kernels().load_bf16(bits.data(), got.data(), 65536);
    for (int i = 0; i < 65536; ++i) {
      ASSERT_EQ(std::bit_cast<std::uint32_t>(got[i]), static_cast<std::uint32_t>(i) << 16);
    }
  }
}

TEST(AttentionKernels, AWeightOfZeroContributesExactlyZero) {
  for (const Isa isa : test::available_isas()) {
    const test::IsaScope scope(isa);
    const std::vector<float> bad(37, kNan);
    std::vector<float> a(37, 1.5F);
    attention_kernels().mix(a.data(), 1.0F, bad.data(), 0.0F, 37);
    EXPECT_EQ(a, std::vector<float>(37, 1.5F));
    attention_kernels().mix(a.data(), 0.5F, bad.data(), 0.0F, 37);
    EXPECT_EQ(a, std::vector<float>(37, 0.75F));
    std::vector<float> b = bad;
    attention_kernels().mix(b.data(), 0.0F, a.data(), 1.0F, 37);
    EXPECT_EQ(b, a);
    b = bad;
    attention_kernels().mix(b.data(), 0.0F, bad.data(), 0.0F, 37);
    EXPECT_EQ(b, std::vector<float>(37, 0.0F));
  }
}

}  // namespace
}  // namespace sparsespan
