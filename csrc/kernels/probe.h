#pragma once

// What the machine gives right now: register-resident arithmetic at one level, the yardstick of the benchmarks.

#include <cstdint>

#include "core/isa.h"

namespace sparsespan {

struct ProbeKernels {
  // Runs `iterations` steps over chains that depend only on themselves; returns their sum, so that nothing is dropped.
  float (*multiply_add)(std::int64_t iterations) noexcept;
  int flops_per_iteration;
};

// Multiplications and additions per second at that very level: 128-bit multiply + add (generic), 256-bit
// fused (avx2), 512-bit fused (avx512), summed over `threads` threads (0: the default). Refuses a level that cannot run here.
double probe_flops_per_second(Isa isa, std::int64_t iterations, int threads);

}  // namespace sparsespan
