#pragma once

// Include after kernels/simd/{vec,decode,halves}_avx512.h and tiles_*.h. Scores by tiles of bfloat16 pairs.
//
// A strip is 32 keys. Its products with the heads go through a buffer: while the tiles multiply the next strip, the
// vectors do relu and the weighted sum of this one. Two forms: with many rows per panel the keys are packed in pairs
// (B) and the queries stay rows (A); with few the keys stay rows (A) and the queries are packed (B). A product's bits
// are the same in both, and so is the order of the sum over heads: head h goes to partial h % 16, ascending; the
// partials merge in strides 8, 4, 2, 1.

#include <stdint.h>

namespace {

using sparsespan::Narrow;

constexpr int kPanelKeys = 256;
constexpr int kStripKeys = 32;

inline int64_t padded_dim(int64_t dim) { return (dim + 31) / 32 * 32; }
inline int64_t head_tiles(int64_t heads) { return (heads + 15) / 16; }

int64_t query_floats(int64_t heads, int64_t dim) noexcept { return head_tiles(heads) * 16 * padded_dim(dim) / 2; }

int64_t panel_floats(int64_t heads, int64_t dim) noexcept {
  return kPanelKeys * padded_dim(dim) / 2 + 2 * kStripKeys * head_tiles(heads) * 16;
}

// Rows as they are, [16 * tiles][padded dim], or in pairs, [tiles][padded dim / 2][16][2].
inline void pack_rows(const void* const* rows, bool e4m3, bool in_pairs, int64_t dim, uint16_t* out) {
  const int64_t padded = padded_dim(dim);
  if (in_pairs) {
    Halves::pairs(rows, e4m3, dim, padded, out);
  } else {
    for (int j = 0; j < 16; ++j) Halves::row(rows[j], e4m3, dim, padded, out + j * padded);
  }
}

void pack_query(const void* q, int64_t head_bytes, Narrow type, const float* /*table*/, int64_t heads, int64_t dim,
                bool few, float* packed) noexcept {
  uint16_t* out = (uint16_t*)packed;
  for (int64_t t = 0; t < head_tiles(heads); ++t) {
    const void* rows[16];
    // Heads that are not there: any row will do, their sums are never read.
    for (int64_t r = 0; r < 16; ++r) {
      const int64_t h = t * 16 + r < heads ? t * 16 + r : heads - 1;
      rows[r] = (const char*)q + h * head_bytes;
    }
    pack_rows(rows, type == Narrow::e4m3, few, dim, out + t * 16 * padded_dim(dim));
  }
}

void pack(const void* const* rows, Narrow type, const float* /*table*/, int64_t dim, bool few, float* panel) noexcept {
  uint16_t* out = (uint16_t*)panel;
  for (int j = 0; j < kPanelKeys; j += 16) {
    pack_rows(rows + j, type == Narrow::e4m3, !few, dim, out + j * padded_dim(dim));
  }
}

// What both halves of the work know about a call.
struct Call {
  const uint16_t* q;
  const uint16_t* panel;
  const float* weights;
  const float* scale;
  float* scores;
  int64_t heads;
  int64_t tiles;   // of 16 heads
  int64_t padded;  // dimensions
  bool few;
};

// The sums of 16 keys' scores, lane = key.
inline Vec::Float merge_down(Vec::Float (&s)[16]) {
  for (int stride = 8; stride > 0; stride /= 2) {
    for (int i = 0; i < stride; ++i) s[i] = s[i] + s[i + stride];
  }
  return s[0];
}

// The same tree when the partials lie along the lanes of s[key].
inline Vec::Float merge_across(const Vec::Float (&s)[16]) {
  Vec::Float a[8];
  for (int i = 0; i < 8; ++i) {  // halves of two keys
    a[i] = _mm512_shuffle_f32x4(s[2 * i], s[2 * i + 1], 0x44) + _mm512_shuffle_f32x4(s[2 * i], s[2 * i + 1], 0xEE);
  }
  Vec::Float b[4];
  for (int i = 0; i < 4; ++i) {  // quarters of four keys
    b[i] = _mm512_shuffle_f32x4(a[2 * i], a[2 * i + 1], 0x88) + _mm512_shuffle_f32x4(a[2 * i], a[2 * i + 1], 0xDD);
  }
  Vec::Float c[2];
  for (int i = 0; i < 2; ++i) {
    c[i] = _mm512_shuffle_ps(b[2 * i], b[2 * i + 1], 0x44) + _mm512_shuffle_ps(b[2 * i], b[2 * i + 1], 0xEE);
  }
  const Vec::Float d = _mm512_shuffle_ps(c[0], c[1], 0x88) + _mm512_shuffle_ps(c[0], c[1], 0xDD);
  // Lane 4 i + j holds key 4 j + i.
  return _mm512_permutexvar_ps(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), d);
}

// Relu and the weighted sum over one strip's products, in steps of 16 heads x 16 keys.
struct Post {
  const Call* call;
  const float* products = nullptr;  // [heads][32 keys], or [32 keys][heads] of the few form
  int64_t strip = 0;
  int64_t next = 0;
  int64_t steps = 0;
  Vec::Float sum[16];

  __attribute__((always_inline)) void step() {
    const Call& c = *call;
    const int64_t v = next / c.tiles;
    const int64_t t = next % c.tiles;
    if (t == 0) {
      for (int r = 0; r < 16; ++r) sum[r] = Vec::zero();
    }
    const int64_t count = c.heads - t * 16 < 16 ? c.heads - t * 16 : 16;
    const float* w = c.weights + t * 16;
    if (c.few) {
      const __mmask16 there = (__mmask16)((1U << count) - 1);
      const Vec::Float weights = _mm512_maskz_loadu_ps(there, w);
      const float* at = products + v * 16 * c.tiles * 16 + t * 16;
      for (int r = 0; r < 16; ++r) {
        const Vec::Float x = Vec::relu(Vec::load(at + r * c.tiles * 16));
        sum[r] = _mm512_mask3_fmadd_ps(x, weights, sum[r], there);
      }
    } else {
      const float* at = products + t * 16 * kStripKeys + v * 16;
#pragma GCC unroll 16
      for (int r = 0; r < 16; ++r) {
        if (r < count) sum[r] = Vec::madd(Vec::relu(Vec::load(at + r * kStripKeys)), Vec::broadcast(w[r]), sum[r]);
      }
    }
    if (t == c.tiles - 1) {
      const int64_t key = strip * kStripKeys + v * 16;
      Vec::Float total = c.few ? merge_across(sum) : merge_down(sum);
      if (c.scale != nullptr) total = total * Vec::load(c.scale + key);
      Vec::store(c.scores + key, total);
    }
    ++next;
  }
};

// The products of one strip, with steps of `post` between the tile instructions.
inline void multiply_strip(const Call& c, int64_t strip, float* products, Post& post) {
  const int64_t row = c.padded * (int64_t)sizeof(uint16_t);
  const int64_t tile = 16 * c.padded;  // halves of 16 rows, packed or not
  const uint16_t* keys = c.panel + strip * 2 * tile;
  const int64_t line = (c.few ? c.tiles * 16 : kStripKeys) * (int64_t)sizeof(float);
  const int64_t rounds = (c.tiles + 1) / 2 * (c.padded / 32);
  int64_t round = 0;
  for (int64_t t = 0; t < c.tiles; t += 2) {
    const bool two = t + 1 < c.tiles;
    const uint16_t* heads = c.q + t * tile;
    const uint16_t* a = c.few ? keys : heads;
    const uint16_t* b = c.few ? heads : keys;
    Tiles::zero<0>();
    Tiles::zero<1>();
    Tiles::zero<2>();
    Tiles::zero<3>();
    for (int64_t d = 0; d < c.padded; d += 32) {
      Tiles::load<4>(a + d, row);
      Tiles::load<6>(b + d * 16, 64);
      Tiles::dot<0, 4, 6>();
      if (two || c.few) {
        Tiles::load<5>(a + tile + d, row);
        Tiles::dot<2, 5, 6>();
      }
      if (two || !c.few) {
        Tiles::load<7>(b + tile + d * 16, 64);
        Tiles::dot<1, 4, 7>();
        if (two) Tiles::dot<3, 5, 7>();
      }
      ++round;
      while (post.next < post.steps * round / rounds) post.step();
    }
    float* to = c.few ? products + t * 16 : products + t * 16 * kStripKeys;
    float* below = c.few ? to + 16 * c.tiles * 16 : to + 16 * kStripKeys;
    Tiles::store<0>(to, line);
    if (two || !c.few) Tiles::store<1>(to + 16, line);
    if (two || c.few) Tiles::store<2>(below, line);
    if (two) Tiles::store<3>(below + 16, line);
  }
}

void score(const float* q, const float* weights, int64_t heads, int64_t dim, float* panel, bool few, const float* scale,
           int begin, int end, float* scores) noexcept {
  const Call call = {(const uint16_t*)q, (const uint16_t*)panel, weights, scale, scores, heads,
                     head_tiles(heads),  padded_dim(dim),        few};
  const int64_t size = kStripKeys * call.tiles * 16;
  float* products[2] = {panel + kPanelKeys * call.padded / 2, panel + kPanelKeys * call.padded / 2 + size};
  Post post = {.call = &call, .sum = {}};
  const int64_t last = (end + kStripKeys - 1) / kStripKeys;
  for (int64_t strip = begin / kStripKeys; strip < last; ++strip) {
    multiply_strip(call, strip, products[strip % 2], post);
    post.products = products[strip % 2];
    post.strip = strip;
    post.next = 0;
    post.steps = 2 * call.tiles;
  }
  while (post.next < post.steps) post.step();
}

constexpr sparsespan::IndexerKernels kTable = {.panel_keys = kPanelKeys,
                                               .query_floats = query_floats,
                                               .panel_floats = panel_floats,
                                               .pack_query = pack_query,
                                               .pack = pack,
                                               .score = score,
                                               .tiles = {Tiles::configure, Tiles::release}};

}  // namespace
