#pragma once

// Include after kernels/simd/vec_<isa>.h, inside one translation unit per ISA level.

#include <stdint.h>

namespace {

// x = x * a + b in as many chains as hide the latency (12 x 0.5 cycle for a separate multiply and add, 6 cycles on
// current cores; 24 for a fused one) and fit the registers. The values settle at 1: no subnormal, no overflow.
constexpr int kProbeChains = Vec::kLanes == 16 ? 24 : 12;

float probe_multiply_add(int64_t iterations) noexcept {
  const Vec::Float a = Vec::broadcast(0.5F);
  const Vec::Float b = Vec::broadcast(0.5F);
  Vec::Float x[kProbeChains];
  for (int i = 0; i < kProbeChains; ++i) x[i] = Vec::broadcast((float)i);
  for (int64_t n = 0; n < iterations; ++n) {
    for (int i = 0; i < kProbeChains; ++i) x[i] = Vec::madd(x[i], a, b);
  }
  Vec::Float sum = Vec::zero();
  for (int i = 0; i < kProbeChains; ++i) sum = sum + x[i];
  float lanes[Vec::kLanes];
  Vec::store(lanes, sum);
  return lanes[0];
}

}  // namespace
