#pragma once

// Include after kernels/simd/vec_<isa>.h, inside one translation unit per ISA level.

#include <stdint.h>

namespace {

// x = x * a + b in as many chains as hide the latency (a separate multiply and add: 12 x 0.5 cycle against 6 on current
// cores; a fused one needs 8 at most), few enough that the compiler unrolls them into registers. The values settle at
// 1: no subnormal, no overflow.
constexpr int kProbeChains = 12;

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
