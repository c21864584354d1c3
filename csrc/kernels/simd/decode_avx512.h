#pragma once

// Narrow floats to Vec::Float and back to square blocks. Include after vec_avx512.h.

#include <immintrin.h>
#include <stdint.h>

namespace {

struct Decode {
  static Vec::Float load_float32(const void* p) { return _mm512_loadu_ps(p); }
  static Vec::Float load_bfloat16(const void* p) {
    const __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
  }
  // s|eeee|mmm moved to the places of a half's s|0eeee|mmm0000000 is the same number times 2^-8 (bias 15 instead of 7);
  // the conversion of halves is exact, subnormals too. Only e4m3's NaN, all ones, has no such place.
  static Vec::Float load_e4m3(const void* p, const float* /*table*/) {
    const __m256i code = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)p));
    const __m256i half = _mm256_and_si256(_mm256_slli_epi16(code, 7), _mm256_set1_epi16((short)0xBFFF));
    const __m512 value = _mm512_mul_ps(_mm512_cvtph_ps(half), _mm512_set1_ps(256.0F));
    const __m256i magnitude = _mm256_and_si256(code, _mm256_set1_epi16(0x7F));
    const __mmask16 nan = _mm256_cmpeq_epi16_mask(magnitude, _mm256_set1_epi16(0x7F));
    return _mm512_mask_blend_ps(nan, value, _mm512_castsi512_ps(_mm512_set1_epi32(0x7FC00000)));
  }
  // m[i][j] <-> m[j][i]: pairs, quads, then 128-bit lanes.
  static void transpose(Vec::Float (&m)[16]) {
    __m512 t[16];
    for (int i = 0; i < 16; i += 2) {
      t[i] = _mm512_unpacklo_ps(m[i], m[i + 1]);
      t[i + 1] = _mm512_unpackhi_ps(m[i], m[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
      m[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
      m[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xEE);
      m[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
      m[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xEE);
    }
    for (int i = 0; i < 4; ++i) {
      const __m512 even_low = _mm512_shuffle_f32x4(m[i], m[i + 4], 0x88);
      const __m512 odd_low = _mm512_shuffle_f32x4(m[i], m[i + 4], 0xDD);
      const __m512 even_high = _mm512_shuffle_f32x4(m[i + 8], m[i + 12], 0x88);
      const __m512 odd_high = _mm512_shuffle_f32x4(m[i + 8], m[i + 12], 0xDD);
      m[i] = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
      m[i + 4] = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
      m[i + 8] = _mm512_shuffle_f32x4(even_low, even_high, 0xDD);
      m[i + 12] = _mm512_shuffle_f32x4(odd_low, odd_high, 0xDD);
    }
  }
};

}  // namespace
