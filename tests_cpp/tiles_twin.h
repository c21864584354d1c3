#pragma once

// What a tile instruction computes, one number at a time: within an instruction (32 values) the first and the second
// members of the pairs have a fused sum each, from zero; the two are added, then added to the result.

#include <cmath>
#include <cstdint>
#include <vector>

#include "core/isa.h"
#include "core/types.h"
#include "support.h"

namespace sparsespan::test {

// True when the amx level runs here, on hardware or (SPARSESPAN_EMULATE_AMX=1) emulated.
inline bool has_tiles() { return isa_refusal(Isa::amx).empty(); }

template <class A, class B>
float tile_dot(std::int64_t n, const A& a, const B& b) {
  float sum = 0.0F;
  for (std::int64_t d = 0; d < n; d += 32) {
    float parts[2] = {0.0F, 0.0F};
    for (std::int64_t i = d; i < d + 32 && i < n; ++i) parts[i % 2] = std::fma(a(i), b(i), parts[i % 2]);
    sum += parts[0] + parts[1];
  }
  return sum;
}

// The same of vdpbf16ps: pairs one after the other, of each the second product first, each fused with the sum.
template <class A, class B>
float pairs_dot(std::int64_t n, const A& a, const B& b) {
  float sum = 0.0F;
  for (std::int64_t d = 0; d < n; d += 2) {
    if (d + 1 < n) sum = std::fma(a(d + 1), b(d + 1), sum);
    sum = std::fma(a(d), b(d), sum);
  }
  return sum;
}

template <class A, class B>
float narrow_dot(std::int64_t n, const A& a, const B& b) {
  return active_isa() == Isa::amx ? tile_dot(n, a, b) : pairs_dot(n, a, b);
}

inline float merge_16(std::vector<float> parts) {
  for (std::size_t stride = 8; stride > 0; stride /= 2) {
    for (std::size_t i = 0; i < stride; ++i) parts[i] += parts[i + stride];
  }
  return parts[0];
}

}  // namespace sparsespan::test
