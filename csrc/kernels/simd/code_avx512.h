#pragma once

// Float bits for quantisation. Include after vec_avx512.h.

#include <immintrin.h>
#include <stdint.h>

namespace {

struct Code {
  typedef __m512i Bits;
  static Bits zero() { return _mm512_setzero_si512(); }
  // The larger of each lane's bits and those of |x|.
  static Bits larger(Bits a, Vec::Float x) {
    return _mm512_max_epi32(a, _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7FFFFFFF)));
  }
  static uint32_t largest_lane(Bits a) {
    // With a mask, because GCC 12 thinks that the intrinsic without one reads something undefined.
    const __m256i half = _mm256_max_epi32(_mm512_castsi512_si256(a), _mm512_maskz_extracti64x4_epi64(0xF, a, 1));
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4E));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xB1));
    return (uint32_t)_mm_cvtsi128_si32(m);
  }
  // 32 halves at a time: the larger of each and |x|'s.
  static constexpr int kHalves = 32;
  static Bits larger_halves(Bits a, const void* p) {
    return _mm512_max_epi16(a, _mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi16(0x7FFF)));
  }
  static uint32_t largest_half(Bits a) {
    return largest_lane(_mm512_max_epi32(_mm512_srli_epi32(a, 16), _mm512_and_si512(a, _mm512_set1_epi32(0xFFFF))));
  }
  // See round_e4m3 in body/quant.h for the arithmetic. Only the last eight bits are kept, so that what stands above
  // them in the sum does not matter; the code's own top bit, which may be wrong, is replaced by the sign.
  static void store_e4m3(uint8_t* p, Vec::Float x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i magnitude =
        _mm512_min_epi32(_mm512_and_si512(bits, _mm512_set1_epi32(0x7FFFFFFF)), _mm512_set1_epi32(0x43E00000));
    const __m512i exponent =
        _mm512_max_epi32(_mm512_and_si512(magnitude, _mm512_set1_epi32(0x7F800000)), _mm512_set1_epi32(0x3C800000));
    const __m512 big = _mm512_castsi512_ps(_mm512_add_epi32(exponent, _mm512_set1_epi32(20 << 23)));
    const __m512i sum = _mm512_castps_si512(_mm512_add_ps(_mm512_castsi512_ps(magnitude), big));
    const __m512i steps =
        _mm512_sub_epi32(_mm512_add_epi32(sum, _mm512_srli_epi32(exponent, 20)), _mm512_set1_epi32(121 << 3));
    const __m512i sign = _mm512_srli_epi32(bits, 24);
    // Bit 7 from the sign, the others from the steps.
    const __m512i code = _mm512_ternarylogic_epi32(_mm512_set1_epi32(0x80), sign, steps, 0xCA);
    _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(code));
  }
};

}  // namespace
