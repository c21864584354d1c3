#pragma once

// Butterflies inside one vector. Include after vec_generic.h.

#include <stdint.h>

namespace {

// Lanes i and i + len of each block of 2 * len become a + b and a - b. The factor 1 or -1 is exact: one rounding.
struct Butterfly {
  template <int len>
  static Vec::Float step(Vec::Float v) {
    const Vec::Int order = len == 1 ? Vec::Int{1, 0, 3, 2} : Vec::Int{2, 3, 0, 1};
    const Vec::Float sign = len == 1 ? Vec::Float{1, -1, 1, -1} : Vec::Float{1, 1, -1, -1};
    return __builtin_shuffle(v, order) + v * sign;
  }
  // The other one of each pair of lanes.
  static Vec::Float swap_pairs(Vec::Float v) { return __builtin_shuffle(v, Vec::Int{1, 0, 3, 2}); }
};

}  // namespace
