#include "transform/norms.h"

#include <gtest/gtest.h>

#include <Eigen/Dense>
#include <cmath>
#include <cstring>

#include "support.h"

namespace sparsespan {
namespace {

using test::Array;

Eigen::VectorXd row_of(const Array<float>& a, int row, int n) {
  return Eigen::Map<const Eigen::VectorXf>(a.data.data() + row * n, n).cast<double>();
}

TEST(Norms, EqualFloat64) {
  for (const Isa isa : test::available_isas()) {
    const test::IsaScope scope(isa);
    for (const int n : {1, 3, 16, 33, 128, 1000}) {
      auto x = test::random_array<float>({4, n}, 11U + n, 2.0F);
      auto w = test::random_array<float>({n}, 12);
      auto b = test::random_array<float>({n}, 13);
      Array<float> rms({4, n});
      Array<float> layer({4, n});
      rms_norm({.x = x.tensor(), .w = w.tensor(), .out = rms.tensor(), .eps = 1e-5F, .threads = 2});
      layer_norm({.x = x.tensor(), .w = w.tensor(), .b = b.tensor(), .out = layer.tensor(), .eps = 1e-5F});
      for (int t = 0; t < 4; ++t) {
        const Eigen::VectorXd row = row_of(x, t, n);
        const Eigen::ArrayXd wide_w = row_of(w, 0, n).array();
        const double root = std::sqrt(row.squaredNorm() / n + 1e-5);
        const Eigen::ArrayXd centred = row.array() - row.mean();
        const double deviation = std::sqrt(centred.square().mean() + 1e-5);
        const Eigen::ArrayXd expected_rms = row.array() / root * wide_w;
        const Eigen::ArrayXd expected_layer = centred / deviation * wide_w + row_of(b, 0, n).array();
        // n / 16 additions per partial, half an ulp each, and a few single steps; the mean's error is in units of
        // the largest element over the deviation.
        const double relative = (n / 16.0 + 10) * 6e-8;
        const double spread = 3 + 2 * row.cwiseAbs().maxCoeff() / deviation;
        for (int i = 0; i < n; ++i) {
          EXPECT_NEAR(rms.data[t * n + i], expected_rms(i), relative * std::fabs(expected_rms(i)));
          EXPECT_NEAR(layer.data[t * n + i], expected_layer(i),
                      relative * (spread * std::fabs(wide_w(i)) + std::fabs(b.data[i])));
        }
      }
    }
  }
}

// Rows whose passes overlap, in other memory and in place, beside each row for itself; values down to subnormal
// results.
TEST(Norms, HalvesHaveTheSameBitsAtEveryLevelInAnyCompany) {
  for (const int n : {32, 96, 100, 512}) {
    auto w = test::random_array<float>({n}, 5);
    auto b = test::random_array<float>({n}, 6);
    for (int i = 0; i < n; i += 3) w.data[i] *= 0x1p-125F, b.data[i] *= 0x1p-126F;
    for (const int rows : {1, 2, 3, 6}) {
      const auto x = test::random_array<BFloat16>({rows, n}, 7U + n + rows);
      const auto run = [&](int op, Array<BFloat16>& from, Array<BFloat16>& to) {
        if (op == 2) return layer_norm({.x = from.tensor(), .w = w.tensor(), .b = b.tensor(), .out = to.tensor()});
        const auto cast = op == 0 ? NormCast::after : NormCast::before;
        rms_norm({.x = from.tensor(), .w = w.tensor(), .out = to.tensor(), .eps = 1e-6F, .cast = cast});
      };
      for (const int op : {0, 1, 2}) {
        std::vector<BFloat16> first;
        for (const Isa isa : test::available_isas()) {
          const test::IsaScope scope(isa);
          Array<BFloat16> from = x;
          Array<BFloat16> out({rows, n});
          run(op, from, out);
          if (first.empty()) first = out.data;
          EXPECT_TRUE(test::same_bits(first, out.data)) << name_of(isa) << " " << n << " " << rows << " " << op;
          run(op, from, from);
          EXPECT_TRUE(test::same_bits(first, from.data)) << name_of(isa) << " " << n << " " << rows << " " << op;
          for (int t = 0; t < rows; ++t) {
            Array<BFloat16> one({1, n});
            std::memcpy(one.data.data(), x.data.data() + t * n, 2U * n);
            run(op, one, one);
            EXPECT_EQ(std::memcmp(one.data.data(), first.data() + t * n, 2U * n), 0) << name_of(isa) << " " << t;
          }
        }
      }
    }
  }
}

TEST(Norms, ResidualIsAddedBeforeRounding) {
  auto x = test::random_array<BFloat16>({3, 64}, 1);
  auto residual = test::random_array<BFloat16>({3, 64}, 2);
  auto w = test::random_array<BFloat16>({64}, 3);
  Array<BFloat16> out({3, 64});
  RmsNormParams p{.x = x.tensor(), .residual = residual.tensor(), .w = w.tensor(), .out = out.tensor(), .eps = 1e-6F};
  p.residual_out = p.residual;
  Array<float> sum({3, 64});
  Array<float> expected({3, 64});
  for (int i = 0; i < 192; ++i) sum.data[i] = to_float(x.data[i]) + to_float(residual.data[i]);
  rms_norm({.x = sum.tensor(), .w = w.tensor(), .out = expected.tensor(), .eps = 1e-6F});
  rms_norm(p);
  for (int i = 0; i < 192; ++i) {
    EXPECT_EQ(out.data[i].bits, to_bfloat16(expected.data[i]).bits);
    EXPECT_EQ(residual.data[i].bits, to_bfloat16(sum.data[i]).bits);
  }
}

TEST(Norms, RefuseBadInput) {
  Array<float> x({2, 8});
  Array<float> w({8}, 1.0F);
  Array<float> out({2, 8});
  const RmsNormParams good{.x = x.tensor(), .w = w.tensor(), .out = out.tensor(), .eps = 1e-6F};
  EXPECT_NO_THROW(rms_norm(good));
  auto p = good;
  p.eps = -1.0F;
  EXPECT_THROW(rms_norm(p), std::invalid_argument);
  p = good;
  p.w.shape[0] = 7;
  EXPECT_THROW(rms_norm(p), std::invalid_argument);
  p = good;
  p.residual = x.tensor();
  EXPECT_THROW(rms_norm(p), type_error);  // no residual_out
  Array<std::int32_t> integers({8});
  EXPECT_THROW(layer_norm({.x = x.tensor(), .w = integers.tensor(), .b = w.tensor(), .out = out.tensor()}), type_error);
  EXPECT_THROW(layer_norm({.x = x.tensor(), .w = w.tensor(), .b = w.tensor(), .out = w.tensor()}),
               std::invalid_argument);
}

}  // namespace
}  // namespace sparsespan
