#pragma once

// Include after kernels/simd/vec_<isa>.h and the level's tile sizes, inside one translation unit per ISA level:
//   kScoreVecs, kScoreKeys   columns (in vectors) x keys of the register tile of Q K^T; a panel is kScoreVecs vectors
//   kValueCols, kValueVecs   columns x value vectors of the register tile of P V
// The tile sizes move work between registers and caches; they never change the order of any sum.

#include <stdint.h>

#include "kernels/body/exp.h"

namespace {

using sparsespan::AttendBlock;

constexpr int kPanel = kScoreVecs * Vec::kLanes;
// A panel's slice of Q^T, kPanel * kDimChunk floats, stays in the L1 cache while all keys of the block go by; partial
// scores rest in s between slices, in float32, which changes no bit.
constexpr int64_t kDimChunk = 192;
// Rows of V per pass, so that a strip of V stays in L1 while the columns go by.
constexpr int64_t kKeyChunk = 128;

inline int64_t round_to(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Not inlined, here and below: inside a larger function GCC spills the sums.
template <int kVecs, int kKeys>
__attribute__((noinline)) void score_tile(const float* q, const float* k, int64_t k_stride, int64_t dim, float* s,
                                          int64_t s_stride, bool first) {
  Vec::Float acc[kKeys][kVecs];
  for (int j = 0; j < kKeys; ++j) {
    for (int v = 0; v < kVecs; ++v) acc[j][v] = first ? Vec::zero() : Vec::load(s + j * s_stride + v * Vec::kLanes);
  }
  for (int64_t d = 0; d < dim; ++d) {
    const float* row = q + d * kPanel;
#pragma GCC unroll 16
    for (int j = 0; j < kKeys; ++j) {
      const Vec::Float key = Vec::broadcast(k[j * k_stride + d]);
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) acc[j][v] = Vec::madd(Vec::load(row + v * Vec::kLanes), key, acc[j][v]);
    }
  }
  for (int j = 0; j < kKeys; ++j) {
    for (int v = 0; v < kVecs; ++v) Vec::store(s + j * s_stride + v * Vec::kLanes, acc[j][v]);
  }
}

template <int kVecs>
inline void score_slice(const float* q, const float* k, int64_t k_stride, int64_t n, int64_t dim, float* s,
                        int64_t s_stride, bool first) {
  int64_t j = 0;
  for (; j + kScoreKeys <= n; j += kScoreKeys) {
    score_tile<kVecs, kScoreKeys>(q, k + j * k_stride, k_stride, dim, s + j * s_stride, s_stride, first);
  }
  for (; j + 2 <= n; j += 2) {
    score_tile<kVecs, 2>(q, k + j * k_stride, k_stride, dim, s + j * s_stride, s_stride, first);
  }
  if (j < n) score_tile<kVecs, 1>(q, k + j * k_stride, k_stride, dim, s + j * s_stride, s_stride, first);
}

// s[key][col] = q_col . k_key, d ascending.
inline void score_block(const AttendBlock& b, int64_t s_stride) {
  for (int64_t col = 0; col < b.cols; col += kPanel) {
    const int64_t vecs = (b.cols - col + Vec::kLanes - 1) / Vec::kLanes;
    for (int64_t d = 0; d < b.dim; d += kDimChunk) {
      const int64_t dim = b.dim - d < kDimChunk ? b.dim - d : kDimChunk;
      const float* q = b.q + col * b.dim + d * kPanel;
      if (vecs >= kScoreVecs) {
        score_slice<kScoreVecs>(q, b.k + d, b.k_stride, b.n, dim, b.s + col, s_stride, d == 0);
      } else if (vecs > 1) {
        score_slice<kScoreVecs - 1>(q, b.k + d, b.k_stride, b.n, dim, b.s + col, s_stride, d == 0);
      } else {
        score_slice<1>(q, b.k + d, b.k_stride, b.n, dim, b.s + col, s_stride, d == 0);
      }
    }
  }
}

// Scores to unnormalised probabilities, in place, with the columns' maxima and sums. Keys ascending.
enum class Seen { all, limits, bits };

template <Seen kSeen>
inline void softmax_columns(const AttendBlock& b, int64_t s_stride, int64_t col) {
  const Vec::Float scale = Vec::broadcast(b.sm_scale);
  const Vec::Float minus_inf = Vec::broadcast(-__builtin_inff());
  const Vec::Float limit = kSeen == Seen::limits ? Vec::load(b.limits + col) : Vec::zero();
  Vec::Float m = minus_inf;
  for (int64_t j = 0; j < b.n; ++j) {
    float* at = b.s + j * s_stride + col;
    Vec::Float x = Vec::load(at) * scale;
    if (kSeen == Seen::limits) x = Vec::select_less(Vec::broadcast((float)j), limit, x, minus_inf);
    if (kSeen == Seen::bits) x = Vec::select_bits(b.seen[j] >> col, x, minus_inf);
    Vec::store(at, x);
    m = Vec::max(m, x);
  }
  // A column without keys, or with -inf scores only, has m = -inf: subtract 0 instead, and every p is 0.
  const Vec::Float shift = Vec::select_less(minus_inf, m, m, Vec::zero());
  Vec::Float l = Vec::zero();
  for (int64_t j = 0; j < b.n; ++j) {
    float* at = b.s + j * s_stride + col;
    const Vec::Float p = exp_vec(Vec::load(at) - shift);
    Vec::store(at, p);
    l = l + p;
  }
  Vec::store(b.m + col, m);
  Vec::store(b.l + col, l);
}

template <int kCols, int kVecs>
__attribute__((noinline)) void value_tile(const float* p, int64_t p_stride, const float* v, int64_t v_stride, int64_t n,
                                          float* o, int64_t o_stride, bool first) {
  Vec::Float acc[kCols][kVecs];
  for (int c = 0; c < kCols; ++c) {
    for (int i = 0; i < kVecs; ++i) acc[c][i] = first ? Vec::zero() : Vec::load(o + c * o_stride + i * Vec::kLanes);
  }
  for (int64_t j = 0; j < n; ++j) {
    const float* row = v + j * v_stride;
    const float* weight = p + j * p_stride;
#pragma GCC unroll 16
    for (int c = 0; c < kCols; ++c) {
      const Vec::Float w = Vec::broadcast(weight[c]);
#pragma GCC unroll 4
      for (int i = 0; i < kVecs; ++i) acc[c][i] = Vec::madd(Vec::load(row + i * Vec::kLanes), w, acc[c][i]);
    }
  }
  for (int c = 0; c < kCols; ++c) {
    for (int i = 0; i < kVecs; ++i) Vec::store(o + c * o_stride + i * Vec::kLanes, acc[c][i]);
  }
}

// Columns [col, col + kCols) of one strip of V: the keys that all of them see together, the rest column by column, so
// that a column never multiplies a value that it does not see.
template <int kCols, int kVecs>
inline void value_columns(const AttendBlock& b, int64_t s_stride, int64_t col, int64_t dv, int64_t key, int64_t end) {
  float* o = b.o + col * b.o_stride + dv;
  const float* p = b.s + key * s_stride + col;
  const float* v = b.v + key * b.v_stride + dv;
  int64_t common = end;
  if (b.limits != nullptr) {
    for (int c = 0; c < kCols; ++c) common = (int64_t)b.limits[col + c] < common ? (int64_t)b.limits[col + c] : common;
    common = common < key ? key : common;
  }
  value_tile<kCols, kVecs>(p, s_stride, v, b.v_stride, common - key, o, b.o_stride, key == 0);
  for (int c = 0; c < kCols && common < end; ++c) {
    const int64_t limit = (int64_t)b.limits[col + c] < end ? (int64_t)b.limits[col + c] : end;
    if (limit <= common) continue;
    const int64_t skip = common - key;
    value_tile<1, kVecs>(p + skip * s_stride + c, s_stride, v + skip * b.v_stride, b.v_stride, limit - common,
                         o + c * b.o_stride, b.o_stride, false);
  }
}

template <int kVecs>
inline void value_strip(const AttendBlock& b, int64_t s_stride, int64_t dv, int64_t key, int64_t end) {
  int64_t col = 0;
  for (; col + kValueCols <= b.cols; col += kValueCols) {
    value_columns<kValueCols, kVecs>(b, s_stride, col, dv, key, end);
  }
  for (; col + 2 <= b.cols; col += 2) value_columns<2, kVecs>(b, s_stride, col, dv, key, end);
  if (col < b.cols) value_columns<1, kVecs>(b, s_stride, col, dv, key, end);
}

inline void value_block(const AttendBlock& b, int64_t s_stride) {
  const int64_t width = round_to(b.d_v, Vec::kLanes);
  for (int64_t key = 0; key == 0 || key < b.n; key += kKeyChunk) {
    const int64_t end = key + kKeyChunk < b.n ? key + kKeyChunk : b.n;
    int64_t dv = 0;
    for (; dv + kValueVecs * Vec::kLanes <= width; dv += kValueVecs * Vec::kLanes) {
      value_strip<kValueVecs>(b, s_stride, dv, key, end);
    }
    for (; dv < width; dv += Vec::kLanes) value_strip<1>(b, s_stride, dv, key, end);
  }
}

void attend(const AttendBlock& b) noexcept {
  const int64_t s_stride = round_to(b.cols, kPanel);
  score_block(b, s_stride);
  for (int64_t col = 0; col < b.cols; col += Vec::kLanes) {
    if (b.seen != nullptr) {
      softmax_columns<Seen::bits>(b, s_stride, col);
    } else if (b.limits != nullptr) {
      softmax_columns<Seen::limits>(b, s_stride, col);
    } else {
      softmax_columns<Seen::all>(b, s_stride, col);
    }
  }
  value_block(b, s_stride);
}

}  // namespace
