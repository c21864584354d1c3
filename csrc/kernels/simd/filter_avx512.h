#pragma once

// Which of 16 floats are worth a closer look. Include after vec_avx512.h.

#include <immintrin.h>
#include <stdint.h>

namespace {

struct Filter {
  static constexpr int kStep = 16;
  // A mask of those of p[0..16) that are not below `floor`. NaN is never below.
  static uint32_t not_below(const float* p, Vec::Float floor) {
    return _mm512_cmp_ps_mask(_mm512_loadu_ps(p), floor, _CMP_NLT_UQ);
  }
};

}  // namespace
