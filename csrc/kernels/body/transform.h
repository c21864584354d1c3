#pragma once

// Include after kernels/simd/vec_<isa>.h, inside one translation unit per ISA level.

#include <stdint.h>

namespace {

// Pairs closer than one vector: the same butterflies, element by element.
inline void hadamard_step(float* data, int64_t n, int64_t len) {
  for (int64_t block = 0; block < n; block += 2 * len) {
    for (int64_t j = block; j < block + len; ++j) {
      const float a = data[j];
      const float b = data[j + len];
      data[j] = a + b;
      data[j + len] = a - b;
    }
  }
}

inline void hadamard_wide_step(float* data, int64_t n, int64_t len) {
  for (int64_t block = 0; block < n; block += 2 * len) {
    for (int64_t j = block; j < block + len; j += Vec::kLanes) {
      const Vec::Float a = Vec::load(data + j);
      const Vec::Float b = Vec::load(data + j + len);
      Vec::store(data + j, a + b);
      Vec::store(data + j + len, a - b);
    }
  }
}

void hadamard(float* data, int64_t n, float scale) noexcept {
  for (int64_t len = 1; len < n; len *= 2) {
    if (len < Vec::kLanes) {
      hadamard_step(data, n, len);
    } else {
      hadamard_wide_step(data, n, len);
    }
  }
  for (int64_t j = 0; j < n; ++j) data[j] *= scale;
}

}  // namespace
