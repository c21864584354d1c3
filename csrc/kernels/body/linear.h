#pragma once

// Include after kernels/simd/{vec,decode}_<isa>.h, inside one translation unit per ISA level.

#include <stdint.h>

namespace {

// 4 x 6 sums, 4 rows and one column of 32 wide registers; 2 x 4, 2 and 1 of 16.
constexpr int kTileRows = Vec::kLanes == 16 ? 4 : 2;
constexpr int kTileColumns = Vec::kLanes == 16 ? 6 : 4;

// Where the columns of a tile lie: in a block of float32 rows, or anywhere, as float32 or bfloat16.
struct Block {
  const float* data;
  int64_t stride;
  Vec::Float load(int c, int64_t i) const { return Vec::load(data + c * stride + i); }
};

template <sparsespan::Narrow type>
struct InPlace {
  const void* const* columns;
  Vec::Float load(int c, int64_t i) const {
    if constexpr (type == sparsespan::Narrow::bfloat16) return Decode::load_bfloat16((const uint16_t*)columns[c] + i);
    return Decode::load_float32((const float*)columns[c] + i);
  }
};

template <int kRows, class Columns>
inline void tile_rows(const float* x, int64_t x_stride, const Columns& w, int64_t k, float* acc, int64_t acc_stride) {
  Vec::Float sum[kRows][kTileColumns];
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kTileColumns; ++c) sum[r][c] = Vec::load(acc + r * acc_stride + c * Vec::kLanes);
  }
  for (int64_t i = 0; i < k; i += Vec::kLanes) {
    Vec::Float row[kRows];
    for (int r = 0; r < kRows; ++r) row[r] = Vec::load(x + r * x_stride + i);
    for (int c = 0; c < kTileColumns; ++c) {
      const Vec::Float column = w.load(c, i);
      for (int r = 0; r < kRows; ++r) sum[r][c] = Vec::madd(row[r], column, sum[r][c]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kTileColumns; ++c) Vec::store(acc + r * acc_stride + c * Vec::kLanes, sum[r][c]);
  }
}

template <class Columns>
inline void tile_of(const float* x, int64_t x_stride, int rows, const Columns& w, int64_t k, float* acc,
                    int64_t acc_stride) {
  if constexpr (kTileRows == 4) {
    if (rows == 4) return tile_rows<4>(x, x_stride, w, k, acc, acc_stride);
    if (rows == 3) return tile_rows<3>(x, x_stride, w, k, acc, acc_stride);
  }
  if (rows == 2) return tile_rows<2>(x, x_stride, w, k, acc, acc_stride);
  tile_rows<1>(x, x_stride, w, k, acc, acc_stride);
}

void tile(const float* x, int64_t x_stride, int rows, const float* w, int64_t w_stride, int64_t k, float* acc,
          int64_t acc_stride) noexcept {
  tile_of(x, x_stride, rows, Block{w, w_stride}, k, acc, acc_stride);
}

void tile_in_place(const float* x, int64_t x_stride, int rows, const void* const* columns, sparsespan::Narrow type,
                   int64_t k, float* acc, int64_t acc_stride) noexcept {
  if (type == sparsespan::Narrow::bfloat16) {
    tile_of(x, x_stride, rows, InPlace<sparsespan::Narrow::bfloat16>{columns}, k, acc, acc_stride);
  } else {
    tile_of(x, x_stride, rows, InPlace<sparsespan::Narrow::float32>{columns}, k, acc, acc_stride);
  }
}

void reduce(const float* acc, int64_t n, float* sums) noexcept {
  int64_t i = 0;
  for (; i + Vec::kLanes <= n; i += Vec::kLanes, acc += Vec::kLanes * Vec::kLanes) {  // a square: one sum per lane
    Vec::Float m[Vec::kLanes];
    for (int j = 0; j < Vec::kLanes; ++j) m[j] = Vec::load(acc + j * Vec::kLanes);
    Decode::transpose(m);
    for (int stride = Vec::kLanes / 2; stride > 0; stride /= 2) {
      for (int j = 0; j < stride; ++j) m[j] = m[j] + m[j + stride];
    }
    Vec::store(sums + i, m[0]);
  }
  for (; i < n; ++i, acc += Vec::kLanes) {
    float lane[Vec::kLanes];
    for (int j = 0; j < Vec::kLanes; ++j) lane[j] = acc[j];
    for (int stride = Vec::kLanes / 2; stride > 0; stride /= 2) {
      for (int j = 0; j < stride; ++j) lane[j] += lane[j + stride];
    }
    sums[i] = lane[0];
  }
}

}  // namespace
