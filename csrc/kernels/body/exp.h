#pragma once

// Include after kernels/simd/vec_<isa>.h.

#include <stdint.h>

namespace {

// exp(x) = 2^n * exp(r) with n = round(x / ln 2) and r = x - n ln 2 in two steps (Cody and Waite), |r| <= ln(2) / 2.
// exp(r) = 1 + r + r^2 p(r), p of degree 4 fitted to 1e-8 of the result, so that float32 rounding dominates: within
// 2 ulp. Below ln(2^-126) the result is exactly 0 (no subnormals); NaN stays NaN; -inf gives 0.
inline Vec::Float exp_vec(Vec::Float x) {
  const Vec::Int n = Vec::to_int_nearest(x * Vec::broadcast(1.44269504F));
  const Vec::Float nf = Vec::to_float(n);
  // ln 2 = 0x1.62ep-1 (12 bits, so that its product with n is exact) + the rest.
  Vec::Float r = Vec::madd(nf, Vec::broadcast(-0x1.62ep-1F), x);
  r = Vec::madd(nf, Vec::broadcast(-0x1.0bfbe8p-15F), r);
  Vec::Float p = Vec::broadcast(0x1.6d4366p-10F);
  p = Vec::madd(p, r, Vec::broadcast(0x1.120ba6p-7F));
  p = Vec::madd(p, r, Vec::broadcast(0x1.5554e8p-5F));
  p = Vec::madd(p, r, Vec::broadcast(0x1.5554dcp-3F));
  p = Vec::madd(p, r, Vec::broadcast(0.5F));
  p = Vec::madd(p, r * r, r) + Vec::broadcast(1.0F);
  const Vec::Float y = Vec::scale_by_power_of_two(p, n);
  return Vec::select_less(x, Vec::broadcast(-0x1.5d589ep+6F), Vec::zero(), y);
}

}  // namespace
