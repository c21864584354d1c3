#pragma once

// Narrow floats to Vec::Float and back to square blocks. Include after vec_avx2.h.

#include <immintrin.h>
#include <stdint.h>

namespace {

struct Decode {
  static Vec::Float load_float32(const void* p) { return _mm256_loadu_ps((const float*)p); }
  static Vec::Float load_bfloat16(const void* p) {
    const __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
  }
  // As at the 512-bit level: e4m3's bits in a half's places are the same number times 2^-8, and the conversion of
  // halves is exact, subnormals too (it does not obey MXCSR's denormals-are-zero). Only NaN, all ones, has no such
  // place.
  static Vec::Float load_e4m3(const void* p, const float* /*table*/) {
    const __m128i code = _mm_cvtepi8_epi16(_mm_loadl_epi64((const __m128i*)p));
    const __m128i half = _mm_and_si128(_mm_slli_epi16(code, 7), _mm_set1_epi16((short)0xBFFF));
    const __m256 value = _mm256_mul_ps(_mm256_cvtph_ps(half), _mm256_set1_ps(256.0F));
    const __m128i magnitude = _mm_and_si128(code, _mm_set1_epi16(0x7F));
    const __m256i nan = _mm256_cvtepi16_epi32(_mm_cmpeq_epi16(magnitude, _mm_set1_epi16(0x7F)));
    return _mm256_blendv_ps(value, _mm256_castsi256_ps(_mm256_set1_epi32(0x7FC00000)), _mm256_castsi256_ps(nan));
  }
  // m[i][j] <-> m[j][i]: pairs, quads, then 128-bit lanes.
  static void transpose(Vec::Float (&m)[8]) {
    __m256 t[8];
    for (int i = 0; i < 8; i += 2) {
      t[i] = _mm256_unpacklo_ps(m[i], m[i + 1]);
      t[i + 1] = _mm256_unpackhi_ps(m[i], m[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
      m[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
      m[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xEE);
      m[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
      m[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xEE);
    }
    for (int i = 0; i < 4; ++i) {
      const __m256 low = _mm256_permute2f128_ps(m[i], m[i + 4], 0x20);
      const __m256 high = _mm256_permute2f128_ps(m[i], m[i + 4], 0x31);
      m[i] = low;
      m[i + 4] = high;
    }
  }
};

}  // namespace
