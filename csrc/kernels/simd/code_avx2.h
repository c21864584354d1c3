#pragma once

// Float bits for quantisation. Include after vec_avx2.h.

#include <immintrin.h>
#include <stdint.h>

namespace {

struct Code {
  typedef __m256i Bits;
  static Bits zero() { return _mm256_setzero_si256(); }
  // The larger of each lane's bits and those of |x|.
  static Bits larger(Bits a, Vec::Float x) {
    return _mm256_max_epi32(a, _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7FFFFFFF)));
  }
  static uint32_t largest_lane(Bits a) {
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4E));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xB1));
    return (uint32_t)_mm_cvtsi128_si32(m);
  }
  // Sixteen halves at a time: the larger of each and |x|'s.
  static constexpr int kHalves = 16;
  static Bits larger_halves(Bits a, const void* p) {
    return _mm256_max_epi16(a, _mm256_and_si256(_mm256_loadu_si256((const __m256i*)p), _mm256_set1_epi16(0x7FFF)));
  }
  static uint32_t largest_half(Bits a) {
    return largest_lane(_mm256_max_epi32(_mm256_srli_epi32(a, 16), _mm256_and_si256(a, _mm256_set1_epi32(0xFFFF))));
  }
  // See round_e4m3 in body/quant.h for the arithmetic.
  static void store_e4m3(uint8_t* p, Vec::Float x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i magnitude =
        _mm256_min_epi32(_mm256_and_si256(bits, _mm256_set1_epi32(0x7FFFFFFF)), _mm256_set1_epi32(0x43E00000));
    const __m256i exponent =
        _mm256_max_epi32(_mm256_and_si256(magnitude, _mm256_set1_epi32(0x7F800000)), _mm256_set1_epi32(0x3C800000));
    const __m256 big = _mm256_castsi256_ps(_mm256_add_epi32(exponent, _mm256_set1_epi32(20 << 23)));
    const __m256i sum = _mm256_castps_si256(_mm256_add_ps(_mm256_castsi256_ps(magnitude), big));
    const __m256i steps =
        _mm256_sub_epi32(_mm256_add_epi32(sum, _mm256_srli_epi32(exponent, 20)), _mm256_set1_epi32(121 << 3));
    const __m256i sign = _mm256_and_si256(_mm256_srli_epi32(bits, 24), _mm256_set1_epi32(0x80));
    const __m256i code = _mm256_or_si256(_mm256_and_si256(steps, _mm256_set1_epi32(0x7F)), sign);
    const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(code), _mm256_extracti128_si256(code, 1));
    _mm_storel_epi64((__m128i*)p, _mm_packus_epi16(words, words));
  }
};

}  // namespace
