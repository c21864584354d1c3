#pragma once

// Include after kernels/simd/vec_<isa>.h, inside one translation unit per ISA level.
//
// Row sums have one order at every level: element i is added to partial i % 16, in ascending i, and the partials
// merge in a fixed tree. Only the number of vectors that hold the sixteen partials differs.

#include <math.h>
#include <stdint.h>

namespace {

constexpr int kPartials = 16;
constexpr int kPartialVectors = kPartials / Vec::kLanes;

inline float merge_partials(float* partials) {
  for (int stride = kPartials / 2; stride > 0; stride /= 2) {
    for (int i = 0; i < stride; ++i) partials[i] += partials[i + stride];
  }
  return partials[0];
}

inline float row_sum(const float* data, int64_t n) {
  Vec::Float sums[kPartialVectors];
  for (auto& sum : sums) sum = Vec::zero();
  int64_t i = 0;
  for (; i + kPartials <= n; i += kPartials) {
    for (int v = 0; v < kPartialVectors; ++v) sums[v] = sums[v] + Vec::load(data + i + v * Vec::kLanes);
  }
  float partials[kPartials];
  for (int v = 0; v < kPartialVectors; ++v) Vec::store(partials + v * Vec::kLanes, sums[v]);
  for (int p = 0; i < n; ++i, ++p) partials[p] += data[i];
  return merge_partials(partials);
}

// Sum of (x - centre)^2.
inline float row_sum_of_squares(const float* data, int64_t n, float centre) {
  const Vec::Float centres = Vec::broadcast(centre);
  Vec::Float sums[kPartialVectors];
  for (auto& sum : sums) sum = Vec::zero();
  int64_t i = 0;
  for (; i + kPartials <= n; i += kPartials) {
    for (int v = 0; v < kPartialVectors; ++v) {
      const Vec::Float x = Vec::load(data + i + v * Vec::kLanes) - centres;
      sums[v] = sums[v] + x * x;
    }
  }
  float partials[kPartials];
  for (int v = 0; v < kPartialVectors; ++v) Vec::store(partials + v * Vec::kLanes, sums[v]);
  for (int p = 0; i < n; ++i, ++p) {
    const float x = data[i] - centre;
    partials[p] += x * x;
  }
  return merge_partials(partials);
}

void rms_normalise(float* data, int64_t n, float eps) noexcept {
  const float mean = row_sum_of_squares(data, n, 0.0F) / static_cast<float>(n);
  const float inverse = 1.0F / sqrtf(mean + eps);
  for (int64_t i = 0; i < n; ++i) data[i] *= inverse;
}

// Two passes: the variance from centred values, so that a large mean cancels nothing.
void layer_normalise(float* data, int64_t n, float eps) noexcept {
  const auto count = static_cast<float>(n);
  const float mean = row_sum(data, n) / count;
  const float inverse = 1.0F / sqrtf(row_sum_of_squares(data, n, mean) / count + eps);
  for (int64_t i = 0; i < n; ++i) data[i] = (data[i] - mean) * inverse;
}

void scale_shift(float* data, const float* w, const float* b, int64_t n) noexcept {
  if (b == nullptr) {
    for (int64_t i = 0; i < n; ++i) data[i] *= w[i];
  } else {
    for (int64_t i = 0; i < n; ++i) data[i] = data[i] * w[i] + b[i];
  }
}

}  // namespace
