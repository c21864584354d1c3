#include "attention/sparse_mla.h"

#include <gtest/gtest.h>

#include <Eigen/Dense>
#include <cmath>
#include <limits>

#include "attention/merge_states.h"
#include "support.h"

namespace sparsespan {
namespace {

using test::Array;

constexpr int kRows = 3;
constexpr int kHeads = 5;
constexpr int kKeys = 400;
constexpr int kDim = 40;
constexpr int kValues = 33;
constexpr int kTopk = 600;

struct Case {
  Array<float> q = test::random_array<float>({kRows, kHeads, kDim}, 1);
  Array<float> kv = test::random_array<float>({kKeys, kDim}, 2);
  Array<std::int32_t> indices{{kRows, kTopk}};
  Array<std::int32_t> lanes{{kRows, kTopk}};
  Array<float> out{{kRows, kHeads, kValues}};
  Array<float> lse{{kRows, kHeads}};
  Array<float> top{{kRows, kHeads}};

  Case() {
    std::mt19937 engine(3);
    for (auto& i : indices.data) i = static_cast<std::int32_t>(engine() % (kKeys + 40)) - 40;
    for (auto& i : indices.data) i = std::max(i, -1);
    for (int j = 0; j < kTopk; ++j) indices.data[kTopk + j] = -1;  // row 1 is empty
    for (std::size_t j = 0; j < lanes.data.size(); ++j) lanes.data[j] = indices.data[j] & 7;
  }
  SparseMlaParams params() {
    SparseMlaParams p{.q = q.tensor(), .q_pe = {}, .kv = kv.tensor()};
    p.indices = indices.tensor();
    p.sm_scale = 0.2F;
    p.d_v = kValues;
    p.out = out.tensor();
    p.lse = lse.tensor();
    p.max_logits = top.tensor();
    return p;
  }
};

void expect_row(const Case& c, int t, int h) {
  Eigen::VectorXd sum = Eigen::VectorXd::Zero(kValues);
  double total = 0;
  const Eigen::VectorXd query =
      Eigen::Map<const Eigen::VectorXf>(c.q.data.data() + (t * kHeads + h) * kDim, kDim).cast<double>();
  for (int j = 0; j < kTopk; ++j) {
    const int index = c.indices.data[t * kTopk + j];
    if (index < 0) continue;
    const Eigen::VectorXd key = Eigen::Map<const Eigen::VectorXf>(c.kv.data.data() + index * kDim, kDim).cast<double>();
    const double p = std::exp(static_cast<double>(0.2F) * query.dot(key));
    total += p;
    sum += p * key.head(kValues);
  }
  if (total == 0) {
    EXPECT_EQ(c.lse.data[t * kHeads + h], -std::numeric_limits<float>::infinity());
  } else {
    EXPECT_NEAR(c.lse.data[t * kHeads + h], std::log(total), 3e-6);
    sum /= total;
  }
  // Weights sum to 1 and values are of order 1: float32 sums of 600 terms.
  for (int d = 0; d < kValues; ++d) EXPECT_NEAR(c.out.data[(t * kHeads + h) * kValues + d], sum(d), 3e-6);
}

TEST(SparseMla, EqualsTheFormulaAtEveryLevelAndThreadCount) {
  for (const Isa isa : test::available_isas()) {
    const test::IsaScope scope(isa);
    std::vector<float> first;
    for (int threads : {1, 2, 3, 8}) {
      Case c;
      SparseMlaParams p = c.params();
      p.threads = threads;
      sparse_mla(p);
      for (int t = 0; t < kRows; ++t) {
        for (int h = 0; h < kHeads; ++h) expect_row(c, t, h);
      }
      if (first.empty()) first = c.out.data;
      EXPECT_TRUE(test::same_bits(first, c.out.data));
    }
  }
}

TEST(SparseMla, RanksThatOwnLanesMergeToTheBitsOfOneRank) {
  for (const Isa isa : test::available_isas()) {
    const test::IsaScope scope(isa);
    Case whole;
    SparseMlaParams p = whole.params();
    p.lane_of = whole.lanes.tensor();
    sparse_mla(p);
    for (int ranks : {2, 4, 8}) {
      Array<float> outs({ranks, kRows, kHeads, kValues});
      Array<float> lses({ranks, kRows, kHeads});
      for (int r = 0; r < ranks; ++r) {
        Case part;
        for (auto& i : part.indices.data) i = i % ranks == r ? i : -1;
        SparseMlaParams own = part.params();
        own.lane_of = whole.lanes.tensor();
        sparse_mla(own);
        std::copy(part.out.data.begin(), part.out.data.end(), outs.data.begin() + r * kRows * kHeads * kValues);
        std::copy(part.lse.data.begin(), part.lse.data.end(), lses.data.begin() + r * kRows * kHeads);
      }
      Array<float> out({kRows, kHeads, kValues});
      Array<float> lse({kRows, kHeads});
      merge_states(
          {.outs = outs.tensor(), .lses = lses.tensor(), .attn_sink = {}, .out = out.tensor(), .lse = lse.tensor()});
      EXPECT_TRUE(test::same_bits(out.data, whole.out.data)) << ranks;
      EXPECT_TRUE(test::same_bits(lse.data, whole.lse.data)) << ranks;
    }
  }
}

TEST(SparseMla, RefusesBadInput) {
  Case c;
  c.indices.data[7] = kKeys;
  EXPECT_THROW(sparse_mla(c.params()), std::out_of_range);
  c.indices.data[7] = 0;
  SparseMlaParams p = c.params();
  p.d_v = kDim + 1;
  EXPECT_THROW(sparse_mla(p), std::invalid_argument);
  p = c.params();
  p.kv = c.indices.tensor();
  EXPECT_THROW(sparse_mla(p), type_error);
}

}  // namespace
}  // namespace sparsespan
