#pragma once

// 256-bit float vectors. Same interface as vec_generic.h; madd is fused here, so bits differ between the levels.

#include <immintrin.h>
#include <stdint.h>

namespace {

struct Vec {
  typedef __m256 Float;
  typedef __m256i Int;
  static constexpr int kLanes = 8;

  static Float zero() { return _mm256_setzero_ps(); }
  static Float broadcast(float x) { return _mm256_set1_ps(x); }
  static Float load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Float v) { _mm256_storeu_ps(p, v); }
  static Float madd(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
  // Where a or b is NaN the result is b: relu and running maxima put the data there on purpose.
  static Float max(Float a, Float b) { return _mm256_max_ps(a, b); }
  static Float relu(Float x) { return _mm256_max_ps(_mm256_setzero_ps(), x); }  // relu(NaN) = NaN
  // a < b ? x : y, per lane; a comparison with NaN takes y.
  static Float select_less(Float a, Float b, Float x, Float y) {
    return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
  }
  // Bit i of `bits` set ? x : y, per lane i.
  static Float select_bits(uint64_t bits, Float x, Float y) {
    const Int lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const Int set = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32((int)bits), lane), lane);
    return _mm256_blendv_ps(y, x, _mm256_castsi256_ps(set));
  }
  static Int to_int_nearest(Float x) { return _mm256_cvtps_epi32(x); }
  static Float to_float(Int x) { return _mm256_cvtepi32_ps(x); }
  static Float scale_by_power_of_two(Float x, Int e) {
    return _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e, _mm256_set1_epi32(127)), 23)));
  }
};

}  // namespace
