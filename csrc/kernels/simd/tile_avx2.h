#pragma once

// Tiles of bfloat16 in 16-bit arithmetic. Include after code_avx2.h.

#include <immintrin.h>
#include <stdint.h>

namespace {

struct Tile {
  static constexpr int kHalves = 16;  // elements at a time
  static constexpr int kCodes = 0;    // no quicker way to decode

  // Of |x| as 16 bits each: the largest, and the least that is not zero, less 1 (0xFFFF where all are zero).
  struct Range {
    uint32_t largest;
    uint32_t least;
  };
  static Range range(const char* x, int64_t n) {
    __m256i largest = _mm256_setzero_si256();
    __m256i least = _mm256_set1_epi16(-1);
    for (int64_t i = 0; i < n; i += kHalves) {
      const __m256i a = magnitude(load(x + 2 * i));
      largest = _mm256_max_epu16(largest, a);
      least = _mm256_min_epu16(least, _mm256_add_epi16(a, _mm256_set1_epi16(-1)));
    }
    const __m128i none = _mm_set1_epi16(-1);
    const __m128i most = _mm_max_epu16(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
    const __m128i few = _mm_min_epu16(_mm256_castsi256_si128(least), _mm256_extracti128_si256(least, 1));
    return {0xFFFFU ^ ((uint32_t)_mm_cvtsi128_si32(_mm_minpos_epu16(_mm_xor_si128(most, none))) & 0xFFFFU),
            (uint32_t)_mm_cvtsi128_si32(_mm_minpos_epu16(few)) & 0xFFFFU};
  }
  // See encode_halves in body/quant.h for the arithmetic.
  static void encode(const char* x, uint32_t base, uint8_t* codes, int64_t n) {
    const __m256i bases = _mm256_set1_epi16((short)base);
    for (int64_t i = 0; i < n; i += kHalves) {
      const __m256i bits = load(x + 2 * i);
      const __m256i odd = _mm256_and_si256(_mm256_srli_epi16(bits, 4), _mm256_set1_epi16(1));
      const __m256i steps = _mm256_srli_epi16(_mm256_add_epi16(_mm256_subs_epu16(magnitude(bits), bases), odd), 4);
      const __m256i sign = _mm256_and_si256(_mm256_srli_epi16(bits, 8), _mm256_set1_epi16(0x80));
      const __m256i code = _mm256_or_si256(steps, sign);
      const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(code), _mm256_extracti128_si256(code, 1));
      _mm_storeu_si128((__m128i*)(codes + i), bytes);
    }
  }
  static void decode(const uint8_t*, float, char*, int64_t) {}

 private:
  static __m256i load(const char* p) { return _mm256_loadu_si256((const __m256i*)p); }
  static __m256i magnitude(__m256i x) { return _mm256_and_si256(x, _mm256_set1_epi16(0x7FFF)); }
};

}  // namespace
