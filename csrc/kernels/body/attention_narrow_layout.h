#pragma once

// Include after kernels/simd/{vec,decode,halves}_avx512.h. Where the pieces of a NarrowBlock lie, and what both ways to
// multiply them share.

#include <stdint.h>

namespace {

constexpr int64_t kScoreStride = 64;          // floats of a key's row in s
constexpr int64_t kValueStrip = 128 * 32;     // halves of 16 value columns: [128 pairs of keys][16][2]
constexpr int64_t kWeightTile = 8 * 16 * 32;  // halves of 16 columns in p: [8 x 32 keys][16 columns][32 keys]

inline Vec::Float minus_infinity() { return Vec::broadcast(-__builtin_inff()); }

// What columns [col, col + 16) do not see of key j counts as -inf.
template <bool kSeen>
inline Vec::Float visible(const sparsespan::NarrowBlock& b, int64_t j, int64_t col, Vec::Float x) {
  return kSeen ? Vec::select_bits(b.seen[j] >> col, x, minus_infinity()) : x;
}

// The largest of `m` and the scaled scores of keys [key, end), for columns [col, col + 16).
template <bool kSeen>
inline Vec::Float largest_scores(const sparsespan::NarrowBlock& b, int64_t col, int64_t key, int64_t end,
                                 Vec::Float m) {
  const Vec::Float scale = Vec::broadcast(b.sm_scale);
  for (; key < end; ++key) {
    m = Vec::max(m, visible<kSeen>(b, key, col, Vec::load(b.s + key * kScoreStride + col) * scale));
  }
  return m;
}

}  // namespace
