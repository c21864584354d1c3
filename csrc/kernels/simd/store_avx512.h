#pragma once

// Vec::Float to memory in the formats that rows come in. Include after vec_avx512.h.
//
// A stream_ store goes past the caches and needs an address that is a multiple of 16: NumPy gives no more than that.

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

namespace {

struct Store {
  static constexpr bool kStreams = true;
  static void float32(void* p, Vec::Float v) { _mm512_storeu_ps(p, v); }
  static void bfloat16(void* p, Vec::Float v) { _mm256_storeu_si256((__m256i*)p, rounded(v)); }
  static void stream_float32(void* p, Vec::Float v) {
    _mm_stream_ps((float*)p, _mm512_castps512_ps128(v));
    _mm_stream_ps((float*)p + 4, _mm512_extractf32x4_ps(v, 1));
    _mm_stream_ps((float*)p + 8, _mm512_extractf32x4_ps(v, 2));
    _mm_stream_ps((float*)p + 12, _mm512_extractf32x4_ps(v, 3));
  }
  static void stream_bfloat16(void* p, Vec::Float v) {
    const __m256i halves = rounded(v);
    _mm_stream_si128((__m128i*)p, _mm256_castsi256_si128(halves));
    _mm_stream_si128((__m128i*)p + 1, _mm256_extracti128_si256(halves, 1));
  }
  // Whole lines past the caches, what is left of the first and of the last one as ever.
  static void stream_bytes(const void* from, void* to, int64_t n) {
    int64_t i = (int64_t)(-(uint64_t)to % 64);
    if (i > n) i = n;
    memcpy(to, from, (unsigned long)i);
    for (; i + 64 <= n; i += 64) {
      _mm512_stream_si512((__m512i*)((char*)to + i), _mm512_loadu_si512((const char*)from + i));
    }
    memcpy((char*)to + i, (const char*)from + i, (unsigned long)(n - i));
  }
  static void fence() { _mm_sfence(); }

 private:
  // Round to nearest even; NaN stays NaN, quiet, with its sign.
  static __m256i rounded(Vec::Float v) {
    const __m512i u = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    const __m512i near = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7FFF)), odd);
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    const __m512i words = _mm512_mask_or_epi32(near, nan, u, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(words, 16));
  }
};

}  // namespace
