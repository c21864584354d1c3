#pragma once

// Include after kernels/simd/{vec,decode,halves}_avx512.h, before attention_narrow.h: its products by vdpbf16ps. Each
// step adds two products of bfloat16 to a float32 sum, subnormals flushed; pairs ascending.

#include <stdint.h>

namespace {

using sparsespan::NarrowBlock;

// Keys (or columns) x vectors of the register tiles: 16 sums hide the latency of one dot product a cycle.
constexpr int kTileRows = 8;
constexpr int kTileVecs = 2;
// Pairs of dimensions per pass. The queries' slice, 2 vectors x 288 x 64 bytes, is a little more than L1 while the keys
// go by: two passes would have it in L1, and lose more at their ends than that is worth.
constexpr int64_t kPairChunk = 288;

// s[key][col] (+)= q . k over `pairs` pairs.
template <int kVecs>
__attribute__((noinline)) void score_tile(const uint16_t* k, int64_t k_stride, const uint16_t* q, int64_t q_stride,
                                          int64_t pairs, float* s, bool first) {
  Vec::Float acc[kTileRows][kVecs];
  for (int j = 0; j < kTileRows; ++j) {
    for (int v = 0; v < kVecs; ++v) acc[j][v] = first ? Vec::zero() : Vec::load(s + j * kScoreStride + v * 16);
  }
  const int32_t* key = (const int32_t*)k;
  const int64_t step = k_stride / 2;
  for (int64_t p = 0; p < pairs; ++p) {
    __m512bh x[kVecs];
    for (int v = 0; v < kVecs; ++v) x[v] = (__m512bh)_mm512_loadu_si512(q + v * q_stride + p * 32);
#pragma GCC unroll 16
    for (int j = 0; j < kTileRows; ++j) {
      const __m512bh y = (__m512bh)_mm512_set1_epi32(key[j * step + p]);
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) acc[j][v] = _mm512_dpbf16_ps(acc[j][v], y, x[v]);
    }
  }
  for (int j = 0; j < kTileRows; ++j) {
    for (int v = 0; v < kVecs; ++v) Vec::store(s + j * kScoreStride + v * 16, acc[j][v]);
  }
}

constexpr int kUnit = 2;

// Scores of all keys, and each column's largest times the scale.
template <bool kSeen>
void score_block(const NarrowBlock& b, float* largest) {
  const int64_t rows = (b.n + kTileRows - 1) / kTileRows * kTileRows;
  const int64_t q_stride = b.k_stride * 16;
  for (int64_t c = 0; c < b.cols; c += 16 * kTileVecs) {
    const uint16_t* q = b.q + c * b.k_stride;
    for (int64_t p = 0; p < b.k_stride / 2; p += kPairChunk) {
      const int64_t pairs = b.k_stride / 2 - p < kPairChunk ? b.k_stride / 2 - p : kPairChunk;
      for (int64_t j = 0; j < rows; j += kTileRows) {
        const uint16_t* k = b.k + j * b.k_stride + 2 * p;
        float* s = b.s + j * kScoreStride + c;
        if (b.cols - c > 16) {
          score_tile<kTileVecs>(k, b.k_stride, q + p * 32, q_stride, pairs, s, p == 0);
        } else {
          score_tile<1>(k, b.k_stride, q + p * 32, q_stride, pairs, s, p == 0);
        }
      }
    }
  }
  for (int64_t c = 0; c < b.cols; c += 16) {
    Vec::store(largest + c, largest_scores<kSeen>(b, c, 0, b.n, minus_infinity()));
  }
}

// Weights stay as the softmax has them, [pair][16 columns][2]: a pair's weights are broadcast from one line.
inline void store_weights(Vec::Float (&pairs)[16], uint16_t* out) {
  for (int i = 0; i < 16; ++i) _mm512_storeu_ps((float*)(out + i * 32), pairs[i]);
}

// o[col][dv] = sum over keys of p * v, for 8 columns.
template <int kVecs>
__attribute__((noinline)) void value_tile(const uint16_t* p, const uint16_t* v, int64_t pairs, float* o,
                                          int64_t o_stride, int64_t cols) {
  Vec::Float acc[kTileRows][kVecs];
  for (int c = 0; c < kTileRows; ++c) {
    for (int i = 0; i < kVecs; ++i) acc[c][i] = Vec::zero();
  }
  const int32_t* weight = (const int32_t*)p;
  for (int64_t pair = 0; pair < pairs; ++pair) {
    __m512bh y[kVecs];
    for (int i = 0; i < kVecs; ++i) y[i] = (__m512bh)_mm512_loadu_si512(v + i * kValueStrip + pair * 32);
#pragma GCC unroll 16
    for (int c = 0; c < kTileRows; ++c) {
      const __m512bh x = (__m512bh)_mm512_set1_epi32(weight[pair * 16 + c]);
#pragma GCC unroll 4
      for (int i = 0; i < kVecs; ++i) acc[c][i] = _mm512_dpbf16_ps(acc[c][i], x, y[i]);
    }
  }
  for (int c = 0; c < kTileRows && c < cols; ++c) {
    for (int i = 0; i < kVecs; ++i) Vec::store(o + c * o_stride + i * 16, acc[c][i]);
  }
}

void value_block(const NarrowBlock& b) {
  const int64_t pairs = (b.n + 1) / 2;
  Ahead ahead(b, (b.d_v + 31) / 32 * ((b.cols + kTileRows - 1) / kTileRows));
  for (int64_t dv = 0; dv < b.d_v; dv += 16 * kTileVecs) {
    const uint16_t* v = b.v + dv / 16 * kValueStrip;
    for (int64_t c = 0; c < b.cols; c += kTileRows) {
      const uint16_t* p = b.p + c / 16 * kWeightTile + c % 16 * 2;
      float* o = b.o + c * b.o_stride + dv;
      ahead.step();
      if (b.d_v - dv > 16) {
        value_tile<kTileVecs>(p, v, pairs, o, b.o_stride, b.cols - c);
      } else {
        value_tile<1>(p, v, pairs, o, b.o_stride, b.cols - c);
      }
    }
  }
}

constexpr sparsespan::TileSwitch kTileSwitch = {};

}  // namespace
