#pragma once

// The tile registers, as assembly: GCC 12's intrinsics forget that a tile load reads memory and that a configuration
// has 64 bytes. Eight tiles of 16 rows x 64 bytes, configured once per task.

#include <stdint.h>

namespace {

struct TileConfig {
  uint8_t palette;
  uint8_t start_row;
  uint8_t reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};

alignas(64) constexpr TileConfig kTileConfig = {
    1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

struct Tiles {
  static void configure() noexcept { asm volatile("ldtilecfg %0" ::"m"(kTileConfig)); }
  static void release() noexcept { asm volatile("tilerelease" ::: "memory"); }
  template <int t>
  static void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(t));
  }
  // Row r of tile t: 64 bytes from at + r * stride.
  template <int t>
  static void load(const void* at, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(at), "r"(stride), "i"(t) : "memory");
  }
  template <int t>
  static void store(void* at, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(at), "r"(stride), "i"(t) : "memory");
  }
  // c[m][n] += sum over k of the pair a[m][k] times the pair b[k][n], 16 x 16 x 16 pairs.
  template <int c, int a, int b>
  static void dot() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(c), "i"(a), "i"(b));
  }
};

}  // namespace
