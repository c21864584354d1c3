#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "attention/mha.h"
#include "support.h"

namespace sparsespan {
namespace {

using test::Array;

constexpr int kRows = 150;
constexpr int kKeys = 600;
constexpr int kTopk = 40;
constexpr int kHeads = 2;
constexpr int kDim = 12;
constexpr int kValues = 7;

// Row t sees keys t, t + 7, t + 14, ...; row 5 sees none, row 9 one key twice.
template <class T>
struct Case {
  Array<T> q = test::random_array<T>({kRows, kHeads, kDim}, 1);
  Array<T> k = test::random_array<T>({kKeys, kHeads, kDim}, 2);
  Array<T> v = test::random_array<T>({kKeys, kHeads, kValues}, 3);
  Array<std::int32_t> indices{{kRows, kTopk}};
  Array<float> out{{kRows, kHeads, kValues}};
  Array<float> lse{{kRows, kHeads}};

  Case() {
    for (int t = 0; t < kRows; ++t) {
      for (int j = 0; j < kTopk; ++j) indices.data[t * kTopk + j] = t == 5 ? -1 : t + 7 * j;
    }
    indices.data[9 * kTopk + 1] = 9;
  }
  void run(int threads) {
    sparse_mha({.q = q.tensor(),
                .k = k.tensor(),
                .v = v.tensor(),
                .indices = indices.tensor(),
                .sm_scale = 0.3F,
                .out = out.tensor(),
                .lse = lse.tensor(),
                .threads = threads});
  }
  void expect_row(int t, int h, double tolerance) const {
    double total = 0;
    std::vector<double> sum(kValues, 0.0);
    for (int i = 0; i < kTopk; ++i) {
      const int j = indices.data[t * kTopk + i];
      if (j == -1) continue;
      double score = 0;
      for (int d = 0; d < kDim; ++d) {
        score += static_cast<double>(test::as_float(q.data[(t * kHeads + h) * kDim + d])) *
                 test::as_float(k.data[(j * kHeads + h) * kDim + d]);
      }
      const double p = std::exp(static_cast<double>(0.3F) * score);
      total += p;
      for (int d = 0; d < kValues; ++d) sum[d] += p * test::as_float(v.data[(j * kHeads + h) * kValues + d]);
    }
    const float got = lse.data[t * kHeads + h];
    if (total == 0) {
      EXPECT_EQ(got, -std::numeric_limits<float>::infinity());
      total = 1;
    } else {
      EXPECT_NEAR(got, std::log(total), 2e-6) << t;
    }
    for (int d = 0; d < kValues; ++d) {
      EXPECT_NEAR(out.data[(t * kHeads + h) * kValues + d], sum[d] / total, tolerance) << t;
    }
  }
};

template <class T>
void expect_formula(double tolerance) {
  for (const Isa isa : test::available_isas()) {
    const test::IsaScope scope(isa);
    std::vector<float> first;
    for (const int threads : {1, 2, 7}) {
      Case<T> c;
      c.run(threads);
      if (first.empty()) {
        first = c.out.data;
        for (int t = 0; t < kRows; ++t) {
          for (int h = 0; h < kHeads; ++h) c.expect_row(t, h, tolerance);
        }
      }
      EXPECT_TRUE(test::same_bits(first, c.out.data));
    }
  }
}

// Weights sum to 1, values are of order 1: float32 sums of 40 terms.
TEST(SparseMha, EqualsTheFormulaAtEveryLevelAndThreadCount) { expect_formula<float>(2e-6); }

// From avx512_bf16 on weights are rounded to bfloat16, each by at most 2^-9 of itself.
TEST(SparseMha, EqualsTheFormulaInBfloat16) { expect_formula<BFloat16>(4e-3); }

TEST(SparseMha, RefusesBadInput) {
  Case<float> c;
  c.indices.data[11] = kKeys;
  EXPECT_THROW(c.run(1), std::out_of_range);
  c.indices.data[11] = -2;
  EXPECT_THROW(c.run(1), std::out_of_range);
  Case<float> narrow_v;
  narrow_v.v.shape = {kKeys - 1, kHeads, kValues};
  EXPECT_THROW(narrow_v.run(1), std::invalid_argument);
}

}  // namespace
}  // namespace sparsespan
