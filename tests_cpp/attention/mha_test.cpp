#include "attention/mha.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "support.h"

namespace sparsespan {
namespace {

using test::Array;

// Requests with fewer, as many and more rows than keys; one without rows, one without keys.
const std::vector<int> kCuQ = {0, 3, 303, 303, 310};
const std::vector<int> kCuK = {0, 40, 340, 344, 344};
constexpr int kHeads = 4;
constexpr int kKeyHeads = 2;
constexpr int kDim = 12;
constexpr int kValues = 7;

struct Case {
  Array<float> q = test::random_array<float>({310, kHeads, kDim}, 1);
  Array<float> k = test::random_array<float>({344, kKeyHeads, kDim}, 2);
  Array<float> v = test::random_array<float>({344, kKeyHeads, kValues}, 3);
  Array<std::int32_t> cu_q{{5}};
  Array<std::int32_t> cu_k{{5}};
  Array<float> out{{310, kHeads, kValues}};
  Array<float> lse{{310, kHeads}};

  Case() {
    cu_q.data.assign(kCuQ.begin(), kCuQ.end());
    cu_k.data.assign(kCuK.begin(), kCuK.end());
  }
  void run(bool causal, int threads) {
    mha({.q = q.tensor(),
         .k = k.tensor(),
         .v = v.tensor(),
         .cu_q = cu_q.tensor(),
         .cu_k = cu_k.tensor(),
         .sm_scale = 0.3F,
         .causal = causal,
         .out = out.tensor(),
         .lse = lse.tensor(),
         .threads = threads});
  }
  void expect_row(int t, int h, int first, int seen) const {
    const int head = h / (kHeads / kKeyHeads);
    double total = 0;
    std::vector<double> sum(kValues, 0.0);
    for (int j = first; j < first + seen; ++j) {
      double score = 0;
      for (int d = 0; d < kDim; ++d) {
        score += static_cast<double>(q.data[(t * kHeads + h) * kDim + d]) * k.data[(j * kKeyHeads + head) * kDim + d];
      }
      const double p = std::exp(static_cast<double>(0.3F) * score);
      total += p;
      for (int d = 0; d < kValues; ++d) sum[d] += p * v.data[(j * kKeyHeads + head) * kValues + d];
    }
    const float got = lse.data[t * kHeads + h];
    if (seen == 0) {
      EXPECT_EQ(got, -std::numeric_limits<float>::infinity());
      total = 1;
    } else {
      EXPECT_NEAR(got, std::log(total), 2e-6);
    }
    // Weights sum to 1, values are of order 1: float32 sums of at most 300 terms.
    for (int d = 0; d < kValues; ++d) EXPECT_NEAR(out.data[(t * kHeads + h) * kValues + d], sum[d] / total, 2e-6);
  }
};

TEST(Mha, EqualsTheFormulaAtEveryLevelAndThreadCount) {
  for (const Isa isa : test::available_isas()) {
    const test::IsaScope scope(isa);
    for (const bool causal : {true, false}) {
      std::vector<float> first;
      for (const int threads : {1, 2, 7}) {
        Case c;
        c.run(causal, threads);
        if (first.empty()) first = c.out.data;
        EXPECT_TRUE(test::same_bits(first, c.out.data));
        if (threads > 1) continue;
        for (int b = 0; b < 4; ++b) {
          const int length = kCuK[b + 1] - kCuK[b];
          const int rows = kCuQ[b + 1] - kCuQ[b];
          for (int i = 0; i < rows; ++i) {
            const int seen = causal ? std::clamp(length - rows + i + 1, 0, length) : length;
            for (int h = 0; h < kHeads; ++h) c.expect_row(kCuQ[b] + i, h, kCuK[b], seen);
          }
        }
      }
    }
  }
}

TEST(Mha, RefusesBadInput) {
  Case c;
  c.cu_q.data[4] = 309;
  EXPECT_THROW(c.run(true, 1), std::invalid_argument);
}

}  // namespace
}  // namespace sparsespan
