#pragma once

// 512-bit float vectors. Same interface as vec_generic.h; madd is fused here, so bits differ between the levels.

#include <immintrin.h>
#include <stdint.h>

namespace {

struct Vec {
  typedef __m512 Float;
  typedef __m512i Int;
  static constexpr int kLanes = 16;

  static Float zero() { return _mm512_setzero_ps(); }
  static Float broadcast(float x) { return _mm512_set1_ps(x); }
  static Float load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Float v) { _mm512_storeu_ps(p, v); }
  static Float madd(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  // Where a or b is NaN the result is b: relu and running maxima put the data there on purpose.
  static Float max(Float a, Float b) { return _mm512_max_ps(a, b); }
  static Float relu(Float x) { return _mm512_max_ps(_mm512_setzero_ps(), x); }  // relu(NaN) = NaN
  // a < b ? x : y, per lane; a comparison with NaN takes y.
  static Float select_less(Float a, Float b, Float x, Float y) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
  }
  // Bit i of `bits` set ? x : y, per lane i.
  static Float select_bits(uint64_t bits, Float x, Float y) { return _mm512_mask_blend_ps((__mmask16)bits, y, x); }
  static Int to_int_nearest(Float x) { return _mm512_cvtps_epi32(x); }
  static Float to_float(Int x) { return _mm512_cvtepi32_ps(x); }
  static Float scale_by_power_of_two(Float x, Int e) {
    return _mm512_mul_ps(x, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(e, _mm512_set1_epi32(127)), 23)));
  }
};

}  // namespace
