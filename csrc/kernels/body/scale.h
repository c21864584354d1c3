#pragma once

// The scale of a tile, once for every translation unit that needs it. Include after kernels/quant.h.

#include <stdint.h>

namespace {

// By the bits: exact, where ceil(log2f(x)) misses the values just above a power of two. x normal and positive.
inline float ceil_to_power_of_two(float x) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  return __builtin_bit_cast(float, (bits + 0x7FFFFFU) & 0x7F800000U);  // any mantissa carries into the exponent
}

// Finite and > 0 for every finite amax >= 0.
inline float scale_of_tile(sparsespan::ScaleRule rule, float amax) {
  constexpr float kReciprocal448 = 0x1.24924ap-9F;  // float32(1/448), the official kernel's constant
  constexpr float kFloor = 1e-4F;
  constexpr float kSmallest = 0x1p-126F;
  const float floored = amax < kFloor ? kFloor : amax;
  if (rule == sparsespan::ScaleRule::official) return ceil_to_power_of_two(floored * kReciprocal448);
  if (rule == sparsespan::ScaleRule::official_f32) return floored * kReciprocal448;
  const float scale = amax / 448.0F;
  switch (rule) {
    case sparsespan::ScaleRule::flashmla: return ceil_to_power_of_two(scale < kFloor ? kFloor : scale);
    case sparsespan::ScaleRule::sglang: return scale == 0.0F ? kSmallest : scale;
    default: return scale < kSmallest ? kSmallest : scale;
  }
}

}  // namespace
