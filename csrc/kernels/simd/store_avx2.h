#pragma once

// Vec::Float to memory in the formats that rows come in. Include after vec_avx2.h.
//
// A stream_ store goes past the caches and needs an address that is a multiple of 16: NumPy gives no more than that.

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

namespace {

struct Store {
  static constexpr bool kStreams = true;
  static void float32(void* p, Vec::Float v) { _mm256_storeu_ps((float*)p, v); }
  static void bfloat16(void* p, Vec::Float v) { _mm_storeu_si128((__m128i*)p, rounded(v)); }
  static void stream_float32(void* p, Vec::Float v) {
    _mm_stream_ps((float*)p, _mm256_castps256_ps128(v));
    _mm_stream_ps((float*)p + 4, _mm256_extractf128_ps(v, 1));
  }
  static void stream_bfloat16(void* p, Vec::Float v) { _mm_stream_si128((__m128i*)p, rounded(v)); }
  // Whole lines past the caches, what is left of the first and of the last one as ever.
  static void stream_bytes(const void* from, void* to, int64_t n) {
    int64_t i = (int64_t)(-(uint64_t)to % 64);
    if (i > n) i = n;
    memcpy(to, from, (unsigned long)i);
    for (; i + 32 <= n; i += 32) {
      _mm256_stream_si256((__m256i*)((char*)to + i), _mm256_loadu_si256((const __m256i*)((const char*)from + i)));
    }
    memcpy((char*)to + i, (const char*)from + i, (unsigned long)(n - i));
  }
  static void fence() { _mm_sfence(); }

 private:
  // Round to nearest even; NaN stays NaN, quiet, with its sign.
  static __m128i rounded(Vec::Float v) {
    const __m256i u = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    const __m256i near = _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7FFF)), odd);
    const __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
    const __m256 nan = _mm256_cmp_ps(v, v, _CMP_UNORD_Q);
    const __m256i words =
        _mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(near), _mm256_castsi256_ps(quiet), nan));
    const __m256i halves = _mm256_srli_epi32(words, 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
  }
};

}  // namespace
