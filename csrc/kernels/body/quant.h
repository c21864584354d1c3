#pragma once

// Include after kernels/body/{element,scale}.h and kernels/simd/{code,tile}_<isa>.h, inside one translation unit per
// ISA level.

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

// How the 16-bit way gets from |x| to steps of e4m3, where scale is 2^k and all nonzero quotients are normal codes up
// to 448: less 128 k the bits are those of the quotient, less 0x3C00 more (2^-7) the eight ahead of each step's four
// bits count the code, and adding 7, or 8 where the code is odd, rounds to the nearest, ties to even. All but the last
// is `base`; the subtraction saturates, so that zero stays zero. 0 where the short way does not exist.
inline uint32_t halves_base(const Tile::Range& range, float scale) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, scale);
  const uint32_t exponent = bits >> 23;
  if ((bits & 0x7FFFFFU) != 0 || exponent < 8) return 0;
  const uint32_t zero = 128U * (exponent - 7U);  // 2^-7 times the scale
  const bool fits = range.largest <= zero + 0x7E0U && range.least + 1 >= zero + 0x80U;
  return fits ? zero - 7U : 0;
}

// n is a multiple of Tile::kHalves, `range` that of x.
inline void encode_halves(const char* x, const Tile::Range& range, float scale, uint8_t* codes, int64_t n) {
  const uint32_t base = halves_base(range, scale);
  if (base != 0) {
    Tile::encode(x, base, codes, n);
  } else {
    encode_as<Bf16>(x, scale, codes, n);
  }
}

void encode_e4m3(const void* x, bool bfloat16, float scale, uint8_t* codes, int64_t n) noexcept {
  const char* from = (const char*)x;
  if (!bfloat16) return encode_as<F32>(from, scale, codes, n);
  int64_t i = 0;
  if constexpr (Tile::kHalves > 0) {
    for (; i + Tile::kHalves <= n; i += Tile::kHalves) {
      const char* at = from + i * Bf16::kBytes;
      encode_halves(at, Tile::range(at, Tile::kHalves), scale, codes + i, Tile::kHalves);
    }
  }
  encode_as<Bf16>(from + i * Bf16::kBytes, scale, codes + i, n - i);
}

inline float encode_bad(uint8_t* codes, int64_t n) {
  memset(codes, 0x7F, (unsigned long)n);
  return 1.0F;
}

template <class E>
inline float encode_tile(const char* x, sparsespan::ScaleRule rule, uint8_t* codes, int64_t n) {
  const uint32_t bits = E::kBytes == 2 ? amax_bfloat16(x, n) : amax_float32(x, n);
  if (bits >= 0x7F800000U) return encode_bad(codes, n);
  const float scale = scale_of_tile(rule, __builtin_bit_cast(float, bits));
  encode_as<E>(x, scale, codes, n);
  return scale;
}

// Tiles of kTile halves, kGroup at a time: from the largest value to the scale is a long chain, and several may run
// beside each other.
template <int kTile, int kGroup>
inline void encode_tiles(const char* x, sparsespan::ScaleRule rule, uint8_t* codes, float* scales) {
  Tile::Range range[kGroup];
  for (int g = 0; g < kGroup; ++g) range[g] = Tile::range(x + g * kTile * Bf16::kBytes, kTile);
  for (int g = 0; g < kGroup; ++g) {
    scales[g] = scale_of_tile(rule, __builtin_bit_cast(float, range[g].largest << 16));
  }
  for (int g = 0; g < kGroup; ++g) {
    const char* from = x + g * kTile * Bf16::kBytes;
    if (range[g].largest < 0x7F80U) {
      encode_halves(from, range[g], scales[g], codes + g * kTile, kTile);
    } else {
      scales[g] = encode_bad(codes + g * kTile, kTile);
    }
  }
}

// As many tiles of a row as there is a quick way for, from the front.
inline int64_t encode_usual(const sparsespan::EncodeRows& p, const char* x, uint8_t* codes, char* scales) {
  constexpr int kUsual = 128;
  constexpr int kGroup = 4;
  if (Tile::kHalves == 0 || !p.bfloat16 || p.tile != kUsual) return 0;
  const int64_t tiles = p.n / kUsual;
  int64_t t = 0;
  const auto from = [&] { return x + t * kUsual * Bf16::kBytes; };
  float found[kGroup];
  for (; t + kGroup <= tiles; t += kGroup) {
    encode_tiles<kUsual, kGroup>(from(), p.rule, codes + t * kUsual, found);
    memcpy(scales + 4 * t, found, sizeof found);
  }
  for (; t < tiles; ++t) {
    encode_tiles<kUsual, 1>(from(), p.rule, codes + t * kUsual, found);
    memcpy(scales + 4 * t, found, sizeof(float));
  }
  return tiles;
}

void encode_rows(const sparsespan::EncodeRows& p) noexcept {
  const int element = p.bfloat16 ? Bf16::kBytes : F32::kBytes;
  for (int64_t row = 0; row < p.rows; ++row) {
    const char* x = (const char*)p.x + row * p.x_stride;
    uint8_t* codes = p.codes + row * p.codes_stride;
    char* scales = (char*)p.scales + row * p.scales_stride;
    for (int64_t t = encode_usual(p, x, codes, scales); t < p.n / p.tile; ++t) {
      const char* from = x + t * p.tile * element;
      uint8_t* to = codes + t * p.tile;
      F32::put(scales + 4 * t,
               p.bfloat16 ? encode_tile<Bf16>(from, p.rule, to, p.tile) : encode_tile<F32>(from, p.rule, to, p.tile));
    }
  }
}

template <class E>
void decode_as(const uint8_t* codes, const float* table, float scale, char* out, int64_t n) {
  const Vec::Float scales = Vec::broadcast(scale);
  int64_t i = 0;
  if constexpr (E::kBytes == 2 && Tile::kCodes > 0) {
    // No product is a subnormal number: the smallest code is 2^-9.
    if (scale == 0.0F || scale >= 0x1p-117F) {
      i = n / Tile::kCodes * Tile::kCodes;
      Tile::decode(codes, scale, out, i);
    }
  }
  for (; i + Vec::kLanes <= n; i += Vec::kLanes) {
    E::template store<false>(out + i * E::kBytes, Decode::load_e4m3(codes + i, table) * scales);
  }
  for (; i < n; ++i) E::put(out + i * E::kBytes, table[codes[i]] * scale);
}

void decode_rows(const sparsespan::DecodeRows& p) noexcept {
  for (int64_t row = 0; row < p.rows; ++row) {
    const uint8_t* codes = p.codes + row * p.codes_stride;
    const char* scales = (const char*)p.scales + row * p.scales_stride;
    char* out = (char*)p.out + row * p.out_stride;
    for (int64_t begin = 0; begin < p.n; begin += p.tile, scales += sizeof(float)) {
      const int64_t n = p.n - begin < p.tile ? p.n - begin : p.tile;
      if (p.bfloat16) {
        decode_as<Bf16>(codes + begin, p.table, F32::get(scales), out + begin * Bf16::kBytes, n);
      } else {
        decode_as<F32>(codes + begin, p.table, F32::get(scales), out + begin * F32::kBytes, n);
      }
    }
  }
}

void copy_out(const void* from, void* to, int64_t n) noexcept { Store::stream_bytes(from, to, n); }

void fence() noexcept { Store::fence(); }

constexpr sparsespan::QuantKernels kTable = {.amax_bits = amax_bits,
                                             .encode_e4m3 = encode_e4m3,
                                             .encode_rows = encode_rows,
                                             .decode_rows = decode_rows,
                                             .copy_out = copy_out,
                                             .fence = fence};

}  // namespace
