#include "kernels/probe.h"

#include <immintrin.h>

namespace {

constexpr int kChains = 12;

// x = x + 0.5 * 0.5 - 0.5 * 0.5 in as many chains as hide the latency.
float multiply_add(int64_t iterations) noexcept {
  const __m512bh a = (__m512bh)_mm512_set1_epi32(0x3F003F00);
  const __m512bh b = (__m512bh)_mm512_set1_epi32((int)0xBF003F00);
  __m512 x[kChains];
  for (int i = 0; i < kChains; ++i) x[i] = _mm512_set1_ps((float)i);
  for (int64_t n = 0; n < iterations; ++n) {
    for (int i = 0; i < kChains; ++i) x[i] = _mm512_dpbf16_ps(x[i], a, b);
  }
  __m512 sum = _mm512_setzero_ps();
  for (int i = 0; i < kChains; ++i) sum = sum + x[i];
  return _mm512_cvtss_f32(sum);
}

}  // namespace

namespace sparsespan {

extern const ProbeKernels avx512_bf16_probe_kernels;
const ProbeKernels avx512_bf16_probe_kernels = {.multiply_add = multiply_add, .flops_per_iteration = kChains * 16 * 4};

}  // namespace sparsespan
