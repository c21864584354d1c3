#pragma once

// What the machine gives right now: register-resident arithmetic at one level, the yardstick of the benchmarks.

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/isa.h"

namespace sparsespan {

struct ProbeKernels {
  // Runs `iterations` steps over chains that depend only on themselves; returns their sum, so that nothing is dropped.
  float (*multiply_add)(std::int64_t iterations) noexcept;
  int flops_per_iteration;
};

// Multiplications and additions per second at that very level: 128-bit multiply + add (generic), 256-bit
// fused (avx2), 512-bit fused (avx512), dot products of
// bfloat16 (avx512_bf16), tiles of them (amx), summed over `threads` threads (0: the default). Refuses a level that
// cannot run here.
double probe_flops_per_second(Isa isa, std::int64_t iterations, int threads);

// The same per thread, all of them at once: a benchmark brackets its timings with it, because a core may be slow while
// its neighbour is not.
std::vector<double> probe_flops_per_thread(Isa isa, std::int64_t iterations, int threads);

// What memory gives: `bytes` copied by `threads` threads, or read (into a sum, so that nothing is dropped). The caller
// owns the arrays, chooses their size and times the call.
void probe_copy(const std::byte* from, std::byte* to, std::int64_t bytes, int threads);
std::uint64_t probe_read(const std::byte* from, std::int64_t bytes, int threads);

}  // namespace sparsespan
