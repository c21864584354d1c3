#pragma once

// Tiles of bfloat16 in 16-bit arithmetic, and tiles of codes back to bfloat16, where a level has a quick way. Include
// after code_generic.h.

#include <stdint.h>

namespace {

struct Tile {
  static constexpr int kHalves = 0;  // elements at a time; 0: no quick way to encode
  static constexpr int kCodes = 0;   // the same to decode

  struct Range {
    uint32_t largest;
    uint32_t least;
  };
  static Range range(const char*, int64_t) { return {0, 0}; }
  static void encode(const char*, uint32_t, uint8_t*, int64_t) {}
  static void decode(const uint8_t*, float, char*, int64_t) {}
};

}  // namespace
