#pragma once

// Butterflies inside one vector. Include after vec_avx2.h.

#include <immintrin.h>
#include <stdint.h>

namespace {

// Lanes i and i + len of each block of 2 * len become a + b and a - b. The factor 1 or -1 is exact: one rounding.
struct Butterfly {
  template <int len>
  static Vec::Float step(Vec::Float v) {
    if (len == 1) return _mm256_fmadd_ps(v, _mm256_setr_ps(1, -1, 1, -1, 1, -1, 1, -1), _mm256_permute_ps(v, 0xB1));
    if (len == 2) return _mm256_fmadd_ps(v, _mm256_setr_ps(1, 1, -1, -1, 1, 1, -1, -1), _mm256_permute_ps(v, 0x4E));
    return _mm256_fmadd_ps(v, _mm256_setr_ps(1, 1, 1, 1, -1, -1, -1, -1), _mm256_permute2f128_ps(v, v, 1));
  }
  // The other one of each pair of lanes.
  static Vec::Float swap_pairs(Vec::Float v) { return _mm256_permute_ps(v, 0xB1); }
};

}  // namespace
