#pragma once

// Include after kernels/simd/vec_<isa>.h, inside one translation unit per ISA level.

#include <stdint.h>

namespace {

void rope_half_split(float* data, const float* table, int64_t half) noexcept {
  const float* sines = table + half;
  int64_t i = 0;
  for (; i + Vec::kLanes <= half; i += Vec::kLanes) {
    const Vec::Float a = Vec::load(data + i);
    const Vec::Float b = Vec::load(data + half + i);
    const Vec::Float c = Vec::load(table + i);
    const Vec::Float s = Vec::load(sines + i);
    Vec::store(data + i, a * c - b * s);
    Vec::store(data + half + i, a * s + b * c);
  }
  for (; i < half; ++i) {
    const float a = data[i];
    const float b = data[half + i];
    data[i] = a * table[i] - b * sines[i];
    data[half + i] = a * sines[i] + b * table[i];
  }
}

void rope_interleaved(float* __restrict data, const float* __restrict table, int64_t half) noexcept {
  const float* sines = table + half;
  for (int64_t i = 0; i < half; ++i) {
    const float a = data[2 * i];
    const float b = data[2 * i + 1];
    data[2 * i] = a * table[i] - b * sines[i];
    data[2 * i + 1] = a * sines[i] + b * table[i];
  }
}

}  // namespace
