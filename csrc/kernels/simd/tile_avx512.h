#pragma once

// Tiles of bfloat16 in 16-bit arithmetic. Include after half_steps_avx512.h.

#include <immintrin.h>
#include <stdint.h>

namespace {

struct Tile {
  static constexpr int kHalves = 32;  // elements at a time
  static constexpr int kCodes = 0;    // no quicker way to decode
  typedef HalfRange Range;
  static Range range(const char* x, int64_t n) { return half_range(x, n); }
  static void encode(const char* x, uint32_t base, uint8_t* codes, int64_t n) { encode_half_steps(x, base, codes, n); }
  static void decode(const uint8_t*, float, char*, int64_t) {}
};

}  // namespace
