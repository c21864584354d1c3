#pragma once

// Which of 16 floats are worth a closer look. Include after vec_avx2.h.

#include <immintrin.h>
#include <stdint.h>

namespace {

struct Filter {
  static constexpr int kStep = 16;
  // A mask of those of p[0..16) that are not below `floor`. NaN is never below.
  static uint32_t not_below(const float* p, Vec::Float floor) {
    const int low = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(p), floor, _CMP_NLT_UQ));
    const int high = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(p + 8), floor, _CMP_NLT_UQ));
    return (uint32_t)(low | high << 8);
  }
};

}  // namespace
