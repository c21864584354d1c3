#pragma once

// Include after kernels/simd/tiles_*.h.

#include <stdint.h>

namespace {

// Six tiles of sums, one of zeros times another: nothing but the multiplier at work.
float probe_tiles(int64_t iterations) noexcept {
  alignas(64) float out[16][16];
  Tiles::configure();
  Tiles::zero<0>();
  Tiles::zero<1>();
  Tiles::zero<2>();
  Tiles::zero<3>();
  Tiles::zero<4>();
  Tiles::zero<5>();
  Tiles::zero<6>();
  Tiles::zero<7>();
  for (int64_t n = 0; n < iterations; ++n) {
    Tiles::dot<0, 6, 7>();
    Tiles::dot<1, 6, 7>();
    Tiles::dot<2, 6, 7>();
    Tiles::dot<3, 6, 7>();
    Tiles::dot<4, 6, 7>();
    Tiles::dot<5, 6, 7>();
  }
  Tiles::store<0>(out, 64);
  Tiles::release();
  return out[0][0];
}

constexpr int kProbeTilesFlops = 6 * 16 * 16 * 32 * 2;

}  // namespace
