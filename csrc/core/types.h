#pragma once

// The two narrow float formats of the field, as plain storage types with exact conversions.
//   bfloat16       1-8-7, the upper half of a float32, rounded to nearest even.
//   float8_e4m3fn  1-4-3, bias 7, no infinity, NaN = 0x7F and 0xFF, largest 448, subnormal step 2^-9
//                  (OCP 8-bit floating point specification, revision 1.0).

#include <array>
#include <bit>
#include <cstdint>
#include <limits>

namespace sparsespan {

struct BFloat16 {
  std::uint16_t bits;
};

struct Float8E4M3 {
  std::uint8_t bits;
};

constexpr float to_float(float value) { return value; }

constexpr float to_float(BFloat16 value) { return std::bit_cast<float>(static_cast<std::uint32_t>(value.bits) << 16); }

constexpr BFloat16 to_bfloat16(float value) {
  const auto u = std::bit_cast<std::uint32_t>(value);
  if ((u & 0x7FFFFFFFU) > 0x7F800000U) {  // NaN: keep the sign, set the quiet bit, never carry to inf
    return {static_cast<std::uint16_t>((u >> 16) | 0x0040U)};
  }
  return {static_cast<std::uint16_t>((u + 0x7FFFU + ((u >> 16) & 1U)) >> 16)};
}

namespace detail {

constexpr float decode_e4m3(std::uint8_t code) {
  const int exponent = (code >> 3) & 15;
  const int mantissa = code & 7;
  const float sign = (code & 0x80) != 0 ? -1.0F : 1.0F;
  if (exponent == 15 && mantissa == 7) return std::numeric_limits<float>::quiet_NaN();
  // 0x1p-9 * mantissa for subnormals; (8 + mantissa) * 2^(exponent - 10) otherwise.
  float magnitude = exponent == 0 ? static_cast<float>(mantissa) : static_cast<float>(8 + mantissa);
  for (int e = exponent == 0 ? 1 : exponent; e < 10; ++e) magnitude *= 0.5F;
  for (int e = 10; e < exponent; ++e) magnitude *= 2.0F;
  return sign * magnitude;
}

constexpr std::array<float, 256> make_e4m3_table() {
  std::array<float, 256> table{};
  for (int code = 0; code < 256; ++code) table[code] = decode_e4m3(static_cast<std::uint8_t>(code));
  return table;
}

}  // namespace detail

// Every e4m3 value is exact in float32; one look-up decodes subnormals and NaN alike.
inline constexpr std::array<float, 256> kE4M3Table = detail::make_e4m3_table();

inline float to_float(Float8E4M3 value) { return kE4M3Table[value.bits]; }

inline constexpr float kE4M3Max = 448.0F;

// Round to nearest even; magnitudes above 448 saturate; NaN stays NaN.
constexpr Float8E4M3 to_float8_e4m3(float value) {
  const auto u = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint8_t>((u >> 24) & 0x80U);
  const std::uint32_t magnitude = u & 0x7FFFFFFFU;
  if (magnitude > 0x7F800000U) return {static_cast<std::uint8_t>(sign | 0x7FU)};
  if (magnitude >= 0x43E00000U) return {static_cast<std::uint8_t>(sign | 0x7EU)};  // >= 448
  if (magnitude < 0x3C800000U) {
    // Below 2^-6 the step is fixed at 2^-9: adding 2^14 puts that step at the last float32 bit, so the
    // hardware's own rounding to nearest even does the work.
    const float shifted = std::bit_cast<float>(magnitude) + 16384.0F;
    const auto code = static_cast<std::uint8_t>(std::bit_cast<std::uint32_t>(shifted) & 0xFU);
    return {static_cast<std::uint8_t>(sign | code)};
  }
  const std::uint32_t rounded = magnitude + 0x7FFFFU + ((magnitude >> 20) & 1U);
  return {static_cast<std::uint8_t>(sign | ((rounded >> 20) - (120U << 3)))};
}

// e8m0: one byte, value 2^(byte - 127); byte 0 is 2^-127 (as in torch and CUDA), 0xFF is NaN.
struct Float8E8M0 {
  std::uint8_t bits;
};

constexpr float to_float(Float8E8M0 value) {
  if (value.bits == 0xFF) return std::numeric_limits<float>::quiet_NaN();
  if (value.bits == 0) return std::bit_cast<float>(std::uint32_t{0x00400000U});
  return std::bit_cast<float>(static_cast<std::uint32_t>(value.bits) << 23);
}

}  // namespace sparsespan
