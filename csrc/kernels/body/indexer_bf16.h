#pragma once

// Include after kernels/simd/{vec,decode,halves}_avx512.h. Scores by vdpbf16ps: each step adds two products of bfloat16
// to a float32 sum, subnormals flushed whatever MXCSR says. One chain over pairs of d ascending and one over h
// ascending.

#include <stdint.h>

namespace {

using sparsespan::Narrow;

// Measured on Zen 4: 8 heads x 3 vectors of keys hide the latency and need a load for each product.
constexpr int kTileHeads = 8;
constexpr int kTileVecs = 3;
constexpr int kPanelKeys = kTileVecs * 16;

inline int64_t padded_dim(int64_t dim) { return (dim + 31) / 32 * 32; }

int64_t query_floats(int64_t heads, int64_t dim) noexcept { return heads * padded_dim(dim) / 2; }

int64_t panel_floats(int64_t /*heads*/, int64_t dim) noexcept { return kPanelKeys * padded_dim(dim) / 2; }

// packed[h][padded dim]
void pack_query(const void* q, int64_t head_bytes, Narrow type, const float* /*table*/, int64_t heads, int64_t dim,
                bool /*few*/, float* packed) noexcept {
  const int64_t padded = padded_dim(dim);
  for (int64_t h = 0; h < heads; ++h) {
    Halves::row((const char*)q + h * head_bytes, type == Narrow::e4m3, dim, padded, (uint16_t*)packed + h * padded);
  }
}

// panel[vector][pair][16 keys][2]
void pack(const void* const* rows, Narrow type, const float* /*table*/, int64_t dim, bool /*few*/,
          float* panel) noexcept {
  const int64_t padded = padded_dim(dim);
  for (int v = 0; v < kTileVecs; ++v) {
    Halves::pairs(rows + v * 16, type == Narrow::e4m3, dim, padded, (uint16_t*)panel + v * padded * 16);
  }
}

// sum[v] += relu(q[h] . key) * weights[h] for the next kHeads heads.
template <int kHeads>
inline void score_heads(const int32_t* q, const float* weights, int64_t pairs, const float* panel,
                        Vec::Float (&sum)[kTileVecs]) {
  Vec::Float dot[kHeads][kTileVecs];
  for (int h = 0; h < kHeads; ++h) {
    for (int v = 0; v < kTileVecs; ++v) dot[h][v] = Vec::zero();
  }
  const auto step = [&](int64_t p) {
    __m512bh key[kTileVecs];
    for (int v = 0; v < kTileVecs; ++v) key[v] = (__m512bh)_mm512_loadu_ps(panel + (v * pairs + p) * 16);
    for (int h = 0; h < kHeads; ++h) {
      const __m512bh x = (__m512bh)_mm512_set1_epi32(q[h * pairs + p]);
      for (int v = 0; v < kTileVecs; ++v) dot[h][v] = _mm512_dpbf16_ps(dot[h][v], x, key[v]);
    }
  };
  // The queries of a group's rows lie in L2, one behind the other: streams that end before the hardware has learned
  // them. A line of the next tile for every two pairs, which are always even in number.
  const char* next = (const char*)(q + kHeads * pairs);
  for (int64_t p = 0; p < pairs; p += 2) {
    _mm_prefetch(next + p * (kTileHeads * 4), _MM_HINT_T0);
    step(p);
    step(p + 1);
  }
  for (int h = 0; h < kHeads; ++h) {
    const Vec::Float w = Vec::broadcast(weights[h]);
    for (int v = 0; v < kTileVecs; ++v) sum[v] = Vec::madd(Vec::relu(dot[h][v]), w, sum[v]);
  }
}

// What is left after the full tiles, in halves: 4, 2, 1.
template <int kHeads>
inline void score_rest(const int32_t* q, const float* weights, int64_t heads, int64_t pairs, const float* panel,
                       Vec::Float (&sum)[kTileVecs]) {
  if (heads >= kHeads) {
    score_heads<kHeads>(q, weights, pairs, panel, sum);
    q += kHeads * pairs;
    weights += kHeads;
    heads -= kHeads;
  }
  if constexpr (kHeads > 1) score_rest<kHeads / 2>(q, weights, heads, pairs, panel, sum);
}

void score(const float* q, const float* weights, int64_t heads, int64_t dim, float* panel, bool /*few*/,
           const float* scale, int /*begin*/, int /*end*/, float* scores) noexcept {
  const int32_t* words = (const int32_t*)q;
  const int64_t pairs = padded_dim(dim) / 2;
  Vec::Float sum[kTileVecs];
  for (int v = 0; v < kTileVecs; ++v) sum[v] = Vec::zero();
  int64_t h = 0;
  for (; h + kTileHeads <= heads; h += kTileHeads) {
    score_heads<kTileHeads>(words + h * pairs, weights + h, pairs, panel, sum);
  }
  score_rest<kTileHeads / 2>(words + h * pairs, weights + h, heads - h, pairs, panel, sum);
  for (int v = 0; v < kTileVecs; ++v) {
    if (scale != nullptr) sum[v] = sum[v] * Vec::load(scale + v * 16);
    Vec::store(scores + v * 16, sum[v]);
  }
}

constexpr sparsespan::IndexerKernels kTable = {.panel_keys = kPanelKeys,
                                               .query_floats = query_floats,
                                               .panel_floats = panel_floats,
                                               .pack_query = pack_query,
                                               .pack = pack,
                                               .score = score};

}  // namespace
