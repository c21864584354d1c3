#pragma once

// Include after kernels/simd/vec_<isa>.h, inside one translation unit per ISA level.

#include <stdint.h>

namespace {

// Pairs closer than one vector: the same butterflies, element by element. The length is known to the compiler, which
// turns them into shuffles.
template <int64_t len>
inline void hadamard_step(float* data, int64_t n) {
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
  if (n > 1) hadamard_step<1>(data, n);
  if (n > 2) hadamard_step<2>(data, n);
  int64_t len = 4;
  if (Vec::kLanes > 4 && n > 4) {
    hadamard_step<4>(data, n);
    len = 8;
  }
  if (Vec::kLanes > 8 && n > 8) {
    hadamard_step<8>(data, n);
    len = 16;
  }
  for (; len < n; len *= 2) hadamard_wide_step(data, n, len);
  for (int64_t j = 0; j < n; ++j) data[j] *= scale;
}

}  // namespace
