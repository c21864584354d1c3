#pragma once

// Include after kernels/simd/{vec,filter}_<isa>.h, inside one translation unit per ISA level.

#include <stdint.h>
#include <string.h>

namespace {

struct Collected {
  uint32_t floor;
  uint32_t* keys;
  int32_t* indices;
  int64_t count;
  int64_t ties;  // keys equal to `floor` so far
  int64_t nan;

  // In integers, so that neither subnormals nor the caller's rounding modes matter. Always stores, sometimes counts.
  void offer(float score, int64_t index) {
    uint32_t bits;
    memcpy(&bits, &score, sizeof bits);
    if ((bits & 0x7FFFFFFFU) > 0x7F800000U) {
      if (nan < 0) nan = index;
      bits = 0xFFFFFFFEU;  // becomes 1
    }
    if (bits == 0x80000000U) bits = 0;
    const uint32_t key = bits ^ ((uint32_t)((int32_t)bits >> 31) | 0x80000000U);
    keys[count] = key;
    indices[count] = (int32_t)index;
    count += key >= floor ? 1 : 0;
    ties += key == floor ? 1 : 0;
  }
};

// The value whose key is `floor`: what is below it in floats is below it in keys.
inline float value_of_key(uint32_t key) {
  const uint32_t bits = (key & 0x80000000U) != 0 ? key ^ 0x80000000U : ~key;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

int64_t collect(const float* scores, int64_t n, uint32_t floor, int64_t most_ties, int32_t first_index, uint32_t* keys,
                int32_t* indices, int64_t* nan) noexcept {
  Collected out = {floor, keys, indices, 0, 0, -1};
  int64_t i = 0;
  if (floor > 1) {
    Vec::Float low = Vec::broadcast(value_of_key(floor));
    for (; i + Filter::kStep <= n; i += Filter::kStep) {
      if (out.ties >= most_ties) {  // from here on only what is above
        out.floor = floor + 1;
        out.ties = 0;
        most_ties = INT64_MAX;
        low = Vec::broadcast(value_of_key(out.floor));
      }
      for (uint32_t mask = Filter::not_below(scores + i, low); mask != 0; mask &= mask - 1) {
        const int64_t j = i + __builtin_ctz(mask);
        out.offer(scores[j], first_index + j);
      }
    }
  }
  for (; i < n; ++i) out.offer(scores[i], first_index + i);
  if (out.nan >= 0) *nan = out.nan;
  return out.count;
}

}  // namespace
