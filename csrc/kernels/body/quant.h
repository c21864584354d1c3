#pragma once

// Include after kernels/body/element.h and kernels/simd/code_<isa>.h, inside one translation unit per ISA level.

#include <stdint.h>
#include <string.h>

namespace {

uint32_t amax_float32(const char* x, int64_t n) {
  typename Code::Bits largest = Code::zero();  // |x| has no sign bit: the order of the bits is the order of the values
  int64_t i = 0;
  for (; i + Vec::kLanes <= n; i += Vec::kLanes) largest = Code::larger(largest, F32::load(x + i * F32::kBytes));
  uint32_t result = Code::largest_lane(largest);
  for (; i < n; ++i) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, F32::get(x + i * F32::kBytes)) & 0x7FFFFFFFU;
    result = bits > result ? bits : result;
  }
  return result;
}

// The same on halves, twice as many at a time: the lower half of the float32 is zero.
uint32_t amax_bfloat16(const char* x, int64_t n) {
  Code::Bits largest = Code::zero();
  int64_t i = 0;
  for (; i + Code::kHalves <= n; i += Code::kHalves) largest = Code::larger_halves(largest, x + i * Bf16::kBytes);
  uint32_t result = Code::largest_half(largest);
  for (; i < n; ++i) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, Bf16::get(x + i * Bf16::kBytes)) >> 16 & 0x7FFFU;
    result = bits > result ? bits : result;
  }
  return result << 16;
}

uint32_t amax_bits(const void* x, bool bfloat16, int64_t n) noexcept {
  return bfloat16 ? amax_bfloat16((const char*)x, n) : amax_float32((const char*)x, n);
}

// The rounding is that of core/types.h once more (which an ISA file may not include); a test holds the two against each
// other. With M = 2^(e + 20), e the exponent of |x| but at least -6, the sum |x| + M is rounded by the hardware to the
// step of e4m3 at e, and its last bits count those steps: 8 to 16 of them, 0 to 8 below 2^-6. Together with (e + 6) * 8
// they are the code, the carry into the next exponent included.
inline uint8_t round_e4m3(float value) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, value);
  uint32_t magnitude = bits & 0x7FFFFFFFU;
  if (magnitude > 0x43E00000U) magnitude = 0x43E00000U;  // 448
  uint32_t exponent = magnitude & 0x7F800000U;
  if (exponent < 0x3C800000U) exponent = 0x3C800000U;  // 2^-6
  const float sum = __builtin_bit_cast(float, magnitude) + __builtin_bit_cast(float, exponent + (20U << 23));
  const uint32_t code = __builtin_bit_cast(uint32_t, sum) + (exponent >> 20) - (121U << 3);
  return (uint8_t)((code & 0x7FU) | (bits >> 24 & 0x80U));
}

// 1 / scale where that is exact: x * (1 / scale) then has the very bits of x / scale. Else 0.
inline float exact_inverse(float scale) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, scale);
  const bool power_of_two = (bits & 0x7FFFFFU) == 0 && bits >= 0x00800000U && bits <= 0x7E000000U;
  return power_of_two ? 1.0F / scale : 0.0F;
}

template <class E>
void encode_as(const char* x, float scale, uint8_t* codes, int64_t n) {
  const float inverse = exact_inverse(scale);
  const Vec::Float scales = Vec::broadcast(scale);
  const Vec::Float inverses = Vec::broadcast(inverse);
  int64_t i = 0;
  if (inverse != 0.0F) {
    for (; i + Vec::kLanes <= n; i += Vec::kLanes) Code::store_e4m3(codes + i, E::load(x + i * E::kBytes) * inverses);
  } else {
    for (; i + Vec::kLanes <= n; i += Vec::kLanes) Code::store_e4m3(codes + i, E::load(x + i * E::kBytes) / scales);
  }
  for (; i < n; ++i) codes[i] = round_e4m3(E::get(x + i * E::kBytes) / scale);
}

// bfloat16 with a scale of 2^k; what the short way cannot do goes the long one.
void encode_halves(const char* x, float scale, uint8_t* codes, int64_t n) {
  const int k = (int)(__builtin_bit_cast(uint32_t, scale) >> 23) - 127;
  const int down = k > 0 ? 128 * k : 0;
  const int up = k < 0 ? -128 * k : 0;
  int64_t i = 0;
  for (; i + Code::kHalves <= n; i += Code::kHalves) {
    const char* from = x + i * Bf16::kBytes;
    if (!Code::store_halves(codes + i, from, down, up)) encode_as<Bf16>(from, scale, codes + i, Code::kHalves);
  }
  encode_as<Bf16>(x + i * Bf16::kBytes, scale, codes + i, n - i);
}

void encode_e4m3(const void* x, bool bfloat16, float scale, uint8_t* codes, int64_t n) noexcept {
  // From 2^-100 on, a zero stays below all codes when its exponent is shifted like any other.
  if (bfloat16 && exact_inverse(scale) != 0.0F && scale > 0x1p-100F) {
    encode_halves((const char*)x, scale, codes, n);
  } else if (bfloat16) {
    encode_as<Bf16>((const char*)x, scale, codes, n);
  } else {
    encode_as<F32>((const char*)x, scale, codes, n);
  }
}

template <class E, bool stream>
void decode_as(const uint8_t* codes, const float* table, float scale, char* out, int64_t n) {
  const Vec::Float scales = Vec::broadcast(scale);
  int64_t i = 0;
  for (; i + Vec::kLanes <= n; i += Vec::kLanes) {
    E::template store<stream>(out + i * E::kBytes, Decode::load_e4m3(codes + i, table) * scales);
  }
  for (; i < n; ++i) E::put(out + i * E::kBytes, table[codes[i]] * scale);
}

void decode_e4m3(const uint8_t* codes, const float* table, float scale, void* out, bool bfloat16, bool stream,
                 int64_t n) noexcept {
  char* to = (char*)out;
  if (can_stream(stream, out, 0)) {
    bfloat16 ? decode_as<Bf16, true>(codes, table, scale, to, n) : decode_as<F32, true>(codes, table, scale, to, n);
  } else {
    bfloat16 ? decode_as<Bf16, false>(codes, table, scale, to, n) : decode_as<F32, false>(codes, table, scale, to, n);
  }
}

void copy_out(const void* from, void* to, int64_t n) noexcept {
  if (can_stream(true, to, 0)) {
    Store::stream_bytes(from, to, n);
  } else {
    memcpy(to, from, (unsigned long)n);
  }
}

void fence() noexcept { Store::fence(); }

constexpr sparsespan::QuantKernels kTable = {.amax_bits = amax_bits,
                                             .encode_e4m3 = encode_e4m3,
                                             .decode_e4m3 = decode_e4m3,
                                             .copy_out = copy_out,
                                             .fence = fence};

}  // namespace
