#pragma once

// Include after kernels/simd/{vec,decode,halves}_avx512.h. Where the pieces of a NarrowBlock lie, and what both ways to
// multiply them share.

#include <immintrin.h>
#include <stdint.h>

namespace {

constexpr int64_t kScoreStride = 64;          // floats of a key's row in s
constexpr int64_t kValueStrip = 128 * 32;     // halves of 16 value columns: [128 pairs of keys][16][2]
constexpr int64_t kWeightTile = 8 * 16 * 32;  // halves of 16 columns in p: 8 x 32 keys, in each as store_weights has it

// Fetches the rows ahead, some before each of `steps` pieces of work: a burst of all would wait for the few misses that
// a core can have at a time.
class Ahead {
 public:
  Ahead(const sparsespan::NarrowBlock& b, int64_t steps) : b_(b), each_((b.ahead_rows + steps - 1) / steps) {}
  void step() {
    const int64_t end = next_ + each_ < b_.ahead_rows ? next_ + each_ : b_.ahead_rows;
    for (; next_ < end; ++next_) {
      const char* row = (const char*)b_.ahead[next_];
      for (int64_t i = 0; i < b_.ahead_bytes; i += 64) _mm_prefetch(row + i, _MM_HINT_T1);
      _mm_prefetch(row + b_.ahead_bytes - 1, _MM_HINT_T1);  // a row may begin in the middle of a line
    }
  }

 private:
  const sparsespan::NarrowBlock& b_;
  int64_t each_;
  int64_t next_ = 0;
};

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
