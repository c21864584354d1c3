#include "indexer/mqa_logits.h"

#include <gtest/gtest.h>

#include <Eigen/Dense>
#include <cmath>
#include <limits>

#include "support.h"

namespace sparsespan {
namespace {

using test::Array;

template <class T>
Eigen::MatrixXd matrix(const Array<T>& a, std::int64_t first, std::int64_t rows, std::int64_t columns) {
  Eigen::MatrixXd m(rows, columns);
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = 0; j < columns; ++j) m(i, j) = test::as_float(a.data[first + i * columns + j]);
  }
  return m;
}

struct Case {
  static constexpr std::int64_t kRows = 21, kKeys = 130, kHeads = 7, kDim = 40;
  Array<Float8E4M3> q = test::random_array<Float8E4M3>({kRows, kHeads, kDim}, 1);
  Array<BFloat16> k = test::random_array<BFloat16>({kKeys, kDim}, 2);
  Array<float> weights = test::random_array<float>({kRows, kHeads}, 3);
  Array<std::int32_t> ks{{kRows}};
  Array<std::int64_t> ke{{kRows}};
  Array<float> out{{kRows, kKeys}, 7.5F};

  Case() {
    for (int t = 0; t < kRows; ++t) {
      ks.data[t] = 3 * t;
      ke.data[t] = t == 4 ? 5 : 6 * t + 1;  // row 4 is empty
    }
  }
  MqaLogitsParams params(int threads) {
    return {.q = q.tensor(),
            .k = k.tensor(),
            .weights = weights.tensor(),
            .ks = ks.tensor(),
            .ke = ke.tensor(),
            .out = out.tensor(),
            .threads = threads};
  }
};

TEST(MqaLogits, EqualsTheMatrixExpression) {
  for (const Isa isa : test::available_isas()) {
    const test::IsaScope scope(isa);
    Case c;
    mqa_logits(c.params(2));
    const Eigen::MatrixXd keys = matrix(c.k, 0, Case::kKeys, Case::kDim);
    for (int t = 0; t < Case::kRows; ++t) {
      const Eigen::MatrixXd q = matrix(c.q, t * Case::kHeads * Case::kDim, Case::kHeads, Case::kDim);
      const Eigen::RowVectorXd w = matrix(c.weights, t * Case::kHeads, 1, Case::kHeads);
      const Eigen::RowVectorXd expected = w * (q * keys.transpose()).cwiseMax(0.0);
      for (int s = 0; s < Case::kKeys; ++s) {
        const float got = c.out.data[t * Case::kKeys + s];
        if (s >= c.ks.data[t] && s < c.ke.data[t]) {
          EXPECT_NEAR(got, expected(s), 1e-4);  // 40 + 7 roundings of terms of size about 10
        } else {
          EXPECT_EQ(got, -std::numeric_limits<float>::infinity());
        }
      }
    }
  }
}

TEST(MqaLogits, SameBitsForAnyThreads) {
  for (const Isa isa : test::available_isas()) {
    const test::IsaScope scope(isa);
    Case one;
    mqa_logits(one.params(1));
    for (int threads : {2, 3, 8}) {
      Case many;
      mqa_logits(many.params(threads));
      EXPECT_TRUE(test::same_bits(one.out.data, many.out.data));
    }
  }
}

TEST(MqaLogits, RefusesBeforeItWrites) {
  Case c;
  c.ke.data[20] = Case::kKeys + 1;
  EXPECT_THROW(mqa_logits(c.params(1)), std::invalid_argument);
  for (const float x : c.out.data) EXPECT_EQ(x, 7.5F);
}

}  // namespace
}  // namespace sparsespan
