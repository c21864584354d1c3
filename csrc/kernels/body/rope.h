#pragma once

// Include after kernels/body/element.h and kernels/simd/butterfly_<isa>.h, inside one translation unit per ISA level.

#include <stdint.h>

namespace {

using sparsespan::RopeHeads;

// Pairs (i, i + half).
template <class E>
void half_split(const RopeHeads& p) {
  const float* sines = p.table + p.half;
  for (int64_t h = 0; h < p.heads; ++h) {
    const char* in = (const char*)p.in + h * p.in_stride * E::kBytes;
    char* out = (char*)p.out + h * p.out_stride * E::kBytes;
    int64_t i = 0;
    for (; i + Vec::kLanes <= p.half; i += Vec::kLanes) {
      const Vec::Float a = E::load(in + i * E::kBytes);
      const Vec::Float b = E::load(in + (p.half + i) * E::kBytes);
      const Vec::Float c = Vec::load(p.table + i);
      const Vec::Float s = Vec::load(sines + i);
      E::template store<false>(out + i * E::kBytes, a * c - b * s);
      E::template store<false>(out + (p.half + i) * E::kBytes, a * s + b * c);
    }
    for (; i < p.half; ++i) {
      const float a = E::get(in + i * E::kBytes);
      const float b = E::get(in + (p.half + i) * E::kBytes);
      E::put(out + i * E::kBytes, a * p.table[i] - b * sines[i]);
      E::put(out + (p.half + i) * E::kBytes, a * sines[i] + b * p.table[i]);
    }
  }
}

// Pairs (2i, 2i + 1): x * cos + (the other one of the pair) * -+sin. With the cosines twice and the sines with their
// signs in scratch, this is one multiplication and one sum per lane, of the same two products as in a cos - b sin.
template <class E>
void interleaved(const RopeHeads& p) {
  float* cosines = p.scratch;
  float* sines = p.scratch + 2 * p.half;
  for (int64_t i = 0; i < p.half; ++i) {
    cosines[2 * i] = cosines[2 * i + 1] = p.table[i];
    sines[2 * i] = -p.table[p.half + i];
    sines[2 * i + 1] = p.table[p.half + i];
  }
  for (int64_t h = 0; h < p.heads; ++h) {
    const char* in = (const char*)p.in + h * p.in_stride * E::kBytes;
    char* out = (char*)p.out + h * p.out_stride * E::kBytes;
    int64_t i = 0;
    for (; i + Vec::kLanes <= 2 * p.half; i += Vec::kLanes) {
      const Vec::Float x = E::load(in + i * E::kBytes);
      const Vec::Float turned = x * Vec::load(cosines + i) + Butterfly::swap_pairs(x) * Vec::load(sines + i);
      E::template store<false>(out + i * E::kBytes, turned);
    }
    for (; i < 2 * p.half; i += 2) {
      const float a = E::get(in + i * E::kBytes);
      const float b = E::get(in + (i + 1) * E::kBytes);
      E::put(out + i * E::kBytes, a * cosines[i] + b * sines[i]);
      E::put(out + (i + 1) * E::kBytes, b * cosines[i + 1] + a * sines[i + 1]);
    }
  }
}

void fence() noexcept { Store::fence(); }

void rope_half_split(const RopeHeads& p) noexcept { p.bfloat16 ? half_split<Bf16>(p) : half_split<F32>(p); }

void rope_interleaved(const RopeHeads& p) noexcept { p.bfloat16 ? interleaved<Bf16>(p) : interleaved<F32>(p); }

}  // namespace
