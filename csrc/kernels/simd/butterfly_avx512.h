#pragma once

// Butterflies inside one vector. Include after vec_avx512.h.

#include <immintrin.h>
#include <stdint.h>

namespace {

// Lanes i and i + len of each block of 2 * len become a + b and a - b. The factor 1 or -1 is exact: one rounding.
struct Butterfly {
  template <int len>
  static Vec::Float step(Vec::Float v) {
    if (len == 1) return _mm512_fmadd_ps(v, signs(0xAAAA), _mm512_permute_ps(v, 0xB1));
    if (len == 2) return _mm512_fmadd_ps(v, signs(0xCCCC), _mm512_permute_ps(v, 0x4E));
    if (len == 4) return _mm512_fmadd_ps(v, signs(0xF0F0), _mm512_shuffle_f32x4(v, v, 0xB1));
    return _mm512_fmadd_ps(v, signs(0xFF00), _mm512_shuffle_f32x4(v, v, 0x4E));
  }
  // The other one of each pair of lanes.
  static Vec::Float swap_pairs(Vec::Float v) { return _mm512_permute_ps(v, 0xB1); }

 private:
  static Vec::Float signs(__mmask16 minus) {
    return _mm512_mask_blend_ps(minus, _mm512_set1_ps(1.0F), _mm512_set1_ps(-1.0F));
  }
};

}  // namespace
