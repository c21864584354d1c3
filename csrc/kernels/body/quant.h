#pragma once

// Plain loops without branches, so that the compiler vectorises them with whatever flags the including translation
// unit has. The e4m3 rounding is that of core/types.h once more (which an ISA file may not include); a test holds the
// two against each other.

#include <stdint.h>

namespace {

uint32_t amax_bits(const float* x, int64_t n) noexcept {
  int32_t largest = 0;  // |x| has no sign bit: the order of the bits is the order of the values
  for (int64_t i = 0; i < n; ++i) {
    const int32_t bits = __builtin_bit_cast(int32_t, x[i]) & 0x7FFFFFFF;
    largest = bits > largest ? bits : largest;
  }
  return static_cast<uint32_t>(largest);
}

// All ones where the condition holds.
inline uint32_t mask(bool condition) { return -static_cast<uint32_t>(condition); }

inline uint8_t round_e4m3(float value) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, value);
  uint32_t magnitude = bits & 0x7FFFFFFFU;
  const uint32_t over = mask(static_cast<int32_t>(magnitude) > 0x43E00000);  // 448
  magnitude = (magnitude & ~over) | (0x43E00000U & over);
  // Below 2^-6 the step is 2^-9: adding 2^14 leaves just that step to float32's own rounding.
  const float shifted = __builtin_bit_cast(float, magnitude) + 16384.0F;
  const uint32_t small = __builtin_bit_cast(uint32_t, shifted) & 0xFU;
  const uint32_t normal = ((magnitude + 0x7FFFFU + ((magnitude >> 20) & 1U)) >> 20) - (120U << 3);
  const uint32_t is_small = mask(static_cast<int32_t>(magnitude) < 0x3C800000);  // 2^-6
  return static_cast<uint8_t>((small & is_small) | (normal & ~is_small) | ((bits >> 24) & 0x80U));
}

void encode_e4m3(const float* __restrict__ x, float scale, uint8_t* __restrict__ codes, int64_t n) noexcept {
  for (int64_t i = 0; i < n; ++i) codes[i] = round_e4m3(x[i] / scale);
}

void decode_e4m3(const uint8_t* __restrict__ codes, const float* __restrict__ table, float scale,
                 float* __restrict__ out, int64_t n) noexcept {
  for (int64_t i = 0; i < n; ++i) out[i] = table[codes[i]] * scale;
}

}  // namespace
