#pragma once

// Which of 16 floats are worth a closer look. Include after vec_generic.h.

#include <stdint.h>

namespace {

struct Filter {
  static constexpr int kStep = 16;
  static constexpr bool kKeys = false;  // keys one by one
  static constexpr bool kAppends = false;
  // 0 when all of p[0..16) are below `floor`; else a mask of a superset, in fours, of those that are not. NaN is never
  // below.
  static uint32_t not_below(const float* p, Vec::Float floor) {
    const Vec::Int a = Vec::load(p) < floor;
    const Vec::Int b = Vec::load(p + 4) < floor;
    const Vec::Int c = Vec::load(p + 8) < floor;
    const Vec::Int d = Vec::load(p + 12) < floor;
    if (all(a & b & c & d)) return 0;
    return (all(a) ? 0 : 0xFU) | (all(b) ? 0 : 0xF0U) | (all(c) ? 0 : 0xF00U) | (all(d) ? 0 : 0xF000U);
  }

 private:
  static bool all(Vec::Int mask) {
    typedef int64_t Wide __attribute__((vector_size(16)));
    const Wide halves = (Wide)mask;
    return (halves[0] & halves[1]) == -1;
  }
};

}  // namespace
