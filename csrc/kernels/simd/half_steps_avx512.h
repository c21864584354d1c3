#pragma once

// What quantising bfloat16 in 16-bit arithmetic is made of. Include after vec_avx512.h.

#include <immintrin.h>
#include <stdint.h>

namespace {

// Of |x| as 16 bits each: the largest, and the least that is not zero, less 1 (0xFFFF where all are zero).
struct HalfRange {
  uint32_t largest;
  uint32_t least;
};

inline __m512i half_magnitude(__m512i x) { return _mm512_and_si512(x, _mm512_set1_epi16(0x7FFF)); }

// n a multiple of 32.
inline HalfRange half_range(const char* x, int64_t n) {
  __m512i largest = _mm512_setzero_si512();
  __m512i least = _mm512_set1_epi16(-1);
  for (int64_t i = 0; i < n; i += 32) {
    const __m512i a = half_magnitude(_mm512_loadu_si512(x + 2 * i));
    largest = _mm512_max_epu16(largest, a);
    least = _mm512_min_epu16(least, _mm512_add_epi16(a, _mm512_set1_epi16(-1)));
  }
  const __m256i most =
      _mm256_max_epu16(_mm512_castsi512_si256(largest), _mm512_maskz_extracti64x4_epi64(0xF, largest, 1));
  const __m256i few = _mm256_min_epu16(_mm512_castsi512_si256(least), _mm512_maskz_extracti64x4_epi64(0xF, least, 1));
  const __m128i most8 = _mm_max_epu16(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
  const __m128i few8 = _mm_min_epu16(_mm256_castsi256_si128(few), _mm256_extracti128_si256(few, 1));
  const __m128i rest = _mm_minpos_epu16(_mm_xor_si128(most8, _mm_set1_epi16(-1)));
  return {0xFFFFU ^ ((uint32_t)_mm_cvtsi128_si32(rest) & 0xFFFFU),
          (uint32_t)_mm_cvtsi128_si32(_mm_minpos_epu16(few8)) & 0xFFFFU};
}

// 32 halves: steps of e4m3 counted in each word.
inline __m512i half_steps(__m512i bits, __m512i base) {
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi16(bits, 4), _mm512_set1_epi16(1));
  return _mm512_srli_epi16(_mm512_add_epi16(_mm512_subs_epu16(half_magnitude(bits), base), odd), 4);
}

// See encode_halves in body/quant.h. n a multiple of 32.
inline void encode_half_steps(const char* x, uint32_t base, uint8_t* codes, int64_t n) {
  const __m512i bases = _mm512_set1_epi16((short)base);
  for (int64_t i = 0; i < n; i += 32) {
    const __m512i bits = _mm512_loadu_si512(x + 2 * i);
    const __m512i sign = _mm512_srli_epi16(bits, 8);
    const __m512i steps = half_steps(bits, bases);
    const __m512i code = _mm512_ternarylogic_epi32(_mm512_set1_epi16(0x80), sign, steps, 0xCA);  // bit 7 from the sign
    _mm256_storeu_si256((__m256i*)(codes + i), _mm512_cvtepi16_epi8(code));
  }
}

}  // namespace
