#pragma once

// Which of 16 floats are worth a closer look, and counting keys. Include after vec_avx2.h.

#include <immintrin.h>
#include <stdint.h>

namespace {

struct Filter {
  static constexpr int kStep = 16;
  static constexpr bool kKeys = true;      // load() to store_all() exist
  static constexpr bool kAppends = false;  // append() and keep() do not
  // A mask of those of p[0..16) that are not below `floor`. NaN is never below.
  static uint32_t not_below(const float* p, Vec::Float floor) {
    const int low = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(p), floor, _CMP_NLT_UQ));
    const int high = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(p + 8), floor, _CMP_NLT_UQ));
    return (uint32_t)(low | high << 8);
  }

  struct Keys {
    __m256i low;
    __m256i high;
  };
  static Keys load(const uint32_t* p) {
    return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 8))};
  }
  static Keys lesser(Keys a, Keys b) { return {_mm256_min_epu32(a.low, b.low), _mm256_min_epu32(a.high, b.high)}; }
  static Keys greater(Keys a, Keys b) { return {_mm256_max_epu32(a.low, b.low), _mm256_max_epu32(a.high, b.high)}; }
  static Keys minus(Keys a, Keys b) { return {_mm256_sub_epi32(a.low, b.low), _mm256_sub_epi32(a.high, b.high)}; }
  static int count_at_least(const uint32_t* p, Keys least) {
    const Keys k = load(p);
    const Keys same = greater(k, least);
    const int low = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(same.low, k.low)));
    const int high = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(same.high, k.high)));
    return __builtin_popcount((unsigned)(low | high << 8));
  }
  static Keys broadcast(uint32_t key) { return {_mm256_set1_epi32((int)key), _mm256_set1_epi32((int)key)}; }
  static void store_all(uint32_t* p, Keys v) {
    _mm256_storeu_si256((__m256i*)p, v.low);
    _mm256_storeu_si256((__m256i*)(p + 8), v.high);
  }
};

}  // namespace
