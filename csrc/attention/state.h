#pragma once

// Softmax states of a set of columns and the arithmetic of normalised merges, shared by the engine and merge_states.

#include <cmath>
#include <cstdint>
#include <limits>

namespace sparsespan {

inline constexpr float kMinusInf = -std::numeric_limits<float>::infinity();

// Unnormalised: m largest score, l sum of exp(score - m), o [cols][o_stride] sum of exp(score - m) * v.
// Normalised (after normalise): m largest score, l holds the lse, o the attention output.
struct State {
  float* m;
  float* l;
  float* o;
};

// ln(sum exp(score)) of an unnormalised column; -inf when it saw no key.
inline float lse_of(float m, float l) {
  if (l == 0.0F) return kMinusInf;
  return static_cast<float>(static_cast<double>(m) + std::log(static_cast<double>(l)));
}

// 1 / (1 + exp(sink - lse)): the sink's one entry. An empty column gives 0.
inline float sink_factor(float sink, float lse) {
  if (lse == kMinusInf) return 0.0F;
  return static_cast<float>(1.0 / (1.0 + std::exp(static_cast<double>(sink) - static_cast<double>(lse))));
}

struct MergeWeights {
  float a;
  float b;
  float lse;
};

// Weights of two normalised states and the lse of their union. +inf and -inf both mean empty; an empty side has weight
// exactly 0 and the other exactly 1, with its lse unchanged; both empty: weights 0, lse -inf. NaN spreads.
inline MergeWeights merge_weights(float lse_a, float lse_b) {
  const bool empty_a = std::isinf(lse_a);
  const bool empty_b = std::isinf(lse_b);
  if (empty_a && empty_b) return {0.0F, 0.0F, kMinusInf};
  if (empty_a) return {0.0F, 1.0F, lse_b};
  if (empty_b) return {1.0F, 0.0F, lse_a};
  const bool a_leads = lse_a > lse_b;
  const float both[2] = {lse_a, lse_b};  // looked up, not chosen by branches that nobody can predict
  const double m = both[!a_leads];
  const double rest = std::exp(both[a_leads] - m);
  const double sum = 1.0 + rest;  // exp(m - m) = 1
  const float weights[2] = {static_cast<float>(rest / sum), static_cast<float>(1.0 / sum)};
  return {weights[a_leads], weights[!a_leads], static_cast<float>(m + std::log(sum))};
}

}  // namespace sparsespan
