#include "transform/linear.h"

#include <gtest/gtest.h>

#include <Eigen/Dense>
#include <cmath>

#include "support.h"

namespace sparsespan {
namespace {

using test::Array;

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

TEST(Linear, EqualsFloat64) {
  for (const Isa isa : test::available_isas()) {
    const test::IsaScope scope(isa);
    for (const int rows : {1, 5, 70}) {
      for (const int k : {1, 16, 33, 700}) {
        constexpr int kN = 53;
        auto x = test::random_array<float>({rows, 1, k}, 1U + k);
        auto w = test::random_array<float>({1, kN, k}, 2);
        Array<float> out({rows, 1, kN});
        linear({.x = x.tensor(), .w = w.tensor(), .out = out.tensor(), .threads = 2});
        const Eigen::MatrixXd wide_x = Eigen::Map<const Matrix>(x.data.data(), rows, k).cast<double>();
        const Eigen::MatrixXd wide_w = Eigen::Map<const Matrix>(w.data.data(), kN, k).cast<double>();
        const Eigen::MatrixXd expected = wide_x * wide_w.transpose();
        const Eigen::MatrixXd size = wide_x.cwiseAbs() * wide_w.cwiseAbs().transpose();
        for (int t = 0; t < rows; ++t) {
          for (int n = 0; n < kN; ++n) {
            // k / 4 additions per lane at the least wide level, half an ulp each.
            EXPECT_NEAR(out.data[t * kN + n], expected(t, n), size(t, n) * (k / 4.0 + 12) * 6e-8);
          }
        }
      }
    }
  }
}

TEST(Linear, ARowHasItsOwnBits) {
  auto w = test::random_array<BFloat16>({2, 50, 530}, 2);
  auto x = test::random_array<BFloat16>({67, 2, 530}, 1);
  Array<float> all({67, 2, 50});
  for (const Isa isa : test::available_isas()) {
    const test::IsaScope scope(isa);
    linear({.x = x.tensor(), .w = w.tensor(), .out = all.tensor(), .threads = 2});
    for (const int count : {1, 2, 3, 4, 5, 66}) {
      Array<float> some({count, 2, 50});
      Tensor part = x.tensor();
      part.shape[0] = count;
      part.data = x.data.data() + 1060;  // from row 1 on
      linear({.x = part, .w = w.tensor(), .out = some.tensor(), .threads = 1});
      EXPECT_EQ(0, std::memcmp(some.data.data(), all.data.data() + 100, some.data.size() * sizeof(float))) << count;
    }
  }
}

TEST(Linear, RefusesBadInput) {
  Array<float> x({2, 1, 8});
  Array<float> w({1, 3, 8});
  Array<float> out({2, 1, 3});
  const LinearParams good{.x = x.tensor(), .w = w.tensor(), .out = out.tensor()};
  EXPECT_NO_THROW(linear(good));
  auto p = good;
  p.w.shape[2] = 7;
  EXPECT_THROW(linear(p), std::invalid_argument);
  p = good;
  p.scale = w.tensor();
  EXPECT_THROW(linear(p), std::invalid_argument);
  p = good;
  p.out = x.tensor();
  EXPECT_THROW(linear(p), std::invalid_argument);
}

}  // namespace
}  // namespace sparsespan
