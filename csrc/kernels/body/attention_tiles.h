#pragma once

// Include after kernels/simd/{vec,decode,halves}_avx512.h, tiles_*.h and attention_narrow_layout.h, before
// attention_narrow.h: its products by tiles of bfloat16 pairs.

#include <stdint.h>

namespace {

using sparsespan::NarrowBlock;

constexpr int kUnit = 32;

// The running maxima of 32 keys x 32 columns that the tiles have just left in memory, a few keys at a time between the
// tile instructions of the next ones.
template <bool kSeen>
struct Maxima {
  const NarrowBlock* block;
  float* largest;
  int64_t col = 0;
  int64_t key = 0;
  int64_t end = 0;

  __attribute__((always_inline)) void step() {
    constexpr int64_t kKeys = 4;
    if (key >= end) return;
    const int64_t stop = key + kKeys < end ? key + kKeys : end;
    for (int64_t c = col; c < col + 32 && c < block->cols; c += 16) {
      Vec::store(largest + c, largest_scores<kSeen>(*block, c, key, stop, Vec::load(largest + c)));
    }
    key = stop;
  }
  void finish() {
    while (key < end) step();
  }
  void begin(int64_t c, int64_t first) {
    col = c;
    key = first;
    end = first + 32 < block->n ? first + 32 : block->n;
  }
};

// s[key][col] of 32 keys and up to 32 columns; keys are the rows of A as they lie.
template <bool kSeen>
inline void multiply_scores(const NarrowBlock& b, int64_t key, int64_t col, Maxima<kSeen>& maxima) {
  const bool two = b.cols - col > 16;
  const int64_t tile = 16 * b.k_stride;
  const int64_t row = b.k_stride * (int64_t)sizeof(uint16_t);
  const uint16_t* k = b.k + key * b.k_stride;
  const uint16_t* q = b.q + col * b.k_stride;
  Tiles::zero<0>();
  Tiles::zero<1>();
  Tiles::zero<2>();
  Tiles::zero<3>();
  for (int64_t d = 0; d < b.k_stride; d += 32) {
    Tiles::load<4>(k + d, row);
    Tiles::load<6>(q + d * 16, 64);
    Tiles::dot<0, 4, 6>();
    Tiles::load<5>(k + tile + d, row);
    Tiles::dot<2, 5, 6>();
    if (two) {
      Tiles::load<7>(q + tile + d * 16, 64);
      Tiles::dot<1, 4, 7>();
      Tiles::dot<3, 5, 7>();
    }
    maxima.step();
  }
  maxima.finish();
  constexpr int64_t kLine = kScoreStride * (int64_t)sizeof(float);
  float* s = b.s + key * kScoreStride + col;
  Tiles::store<0>(s, kLine);
  Tiles::store<2>(s + 16 * kScoreStride, kLine);
  if (two) {
    Tiles::store<1>(s + 16, kLine);
    Tiles::store<3>(s + 16 * kScoreStride + 16, kLine);
  }
}

// Scores of all keys, and each column's largest times the scale.
template <bool kSeen>
void score_block(const NarrowBlock& b, float* largest) {
  for (int64_t c = 0; c < b.cols; c += 16) Vec::store(largest + c, minus_infinity());
  Maxima<kSeen> maxima = {.block = &b, .largest = largest};
  for (int64_t key = 0; key < b.n; key += 32) {
    for (int64_t col = 0; col < b.cols; col += 32) {
      multiply_scores(b, key, col, maxima);
      maxima.begin(col, key);
    }
  }
  maxima.finish();
}

// Weights as rows of A: [16 columns][32 keys].
inline void store_weights(Vec::Float (&pairs)[16], uint16_t* out) {
  Decode::transpose(pairs);
  for (int c = 0; c < 16; ++c) _mm512_storeu_ps((float*)(out + c * 32), pairs[c]);
}

// A tile of sums to 16 rows of o, or to those that are there.
template <int t>
inline void store_values(float* o, int64_t o_stride, int64_t rows, float* spare) {
  if (rows >= 16) {
    Tiles::store<t>(o, o_stride * (int64_t)sizeof(float));
    return;
  }
  Tiles::store<t>(spare, 64);
  for (int64_t r = 0; r < rows; ++r) Vec::store(o + r * o_stride, Vec::load(spare + r * 16));
}

// o[col][dv] of up to 32 columns and 32 values.
inline void multiply_values(const NarrowBlock& b, int64_t col, int64_t dv) {
  const bool two_cols = b.cols - col > 16;
  const bool two_values = b.d_v - dv > 16;
  const uint16_t* p = b.p + col / 16 * kWeightTile;
  const uint16_t* v = b.v + dv / 16 * kValueStrip;
  Tiles::zero<0>();
  Tiles::zero<1>();
  Tiles::zero<2>();
  Tiles::zero<3>();
  for (int64_t key = 0; key < b.n; key += 32) {
    Tiles::load<4>(p + key * 16, 64);
    Tiles::load<6>(v + key * 16, 64);
    Tiles::dot<0, 4, 6>();
    if (two_values) {
      Tiles::load<7>(v + kValueStrip + key * 16, 64);
      Tiles::dot<1, 4, 7>();
    }
    if (two_cols) {
      Tiles::load<5>(p + kWeightTile + key * 16, 64);
      Tiles::dot<2, 5, 6>();
      if (two_values) Tiles::dot<3, 5, 7>();
    }
  }
  float* o = b.o + col * b.o_stride + dv;
  const int64_t rows = b.cols - col;
  store_values<0>(o, b.o_stride, rows, b.s);
  if (two_values) store_values<1>(o + 16, b.o_stride, rows, b.s);
  if (two_cols) {
    store_values<2>(o + 16 * b.o_stride, b.o_stride, rows - 16, b.s);
    if (two_values) store_values<3>(o + 16 * b.o_stride + 16, b.o_stride, rows - 16, b.s);
  }
}

void value_block(const NarrowBlock& b) {
  Ahead ahead(b, (b.d_v + 31) / 32 * ((b.cols + 31) / 32));
  for (int64_t dv = 0; dv < b.d_v; dv += 32) {
    for (int64_t col = 0; col < b.cols; col += 32) {
      ahead.step();
      multiply_values(b, col, dv);
    }
  }
}

constexpr sparsespan::TileSwitch kTileSwitch = {Tiles::configure, Tiles::release};

}  // namespace
