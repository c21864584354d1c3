#pragma once

// Inner loops of csrc/transform/linear. noexcept, single-threaded, fixed order of arithmetic.
//
// Vectors run along k: lane i of a dot product sums the elements k = i, i + lanes, i + 2 * lanes, ... in ascending
// order, and the lanes are summed in strides lanes / 2, ..., 2, 1 at the very end. So a product of one row and one
// column is one chain of operations per lane, whatever tile, block of k or batch it falls into.

#include <cstdint>

#include "kernels/indexer.h"

namespace sparsespan {

struct LinearKernels {
  int lanes;
  int tile_rows;
  int tile_columns;
  // acc[r][c][lane] += x[r][k] * w[c][k] for rows <= tile_rows, tile_columns columns and k < `k`, a multiple of lanes.
  // acc: [rows][columns of the block][lanes], acc_stride floats between its rows.
  void (*tile)(const float* x, std::int64_t x_stride, int rows, const float* w, std::int64_t w_stride, std::int64_t k,
               float* acc, std::int64_t acc_stride) noexcept;
  // The same for weights of `type` (float32 or bfloat16) as they lie in memory: columns[c] is where column c begins.
  void (*tile_in_place)(const float* x, std::int64_t x_stride, int rows, const void* const* columns, Narrow type,
                        std::int64_t k, float* acc, std::int64_t acc_stride) noexcept;
  // sums[i] = the sum of acc[i][0..lanes)
  void (*reduce)(const float* acc, std::int64_t n, float* sums) noexcept;
};

const LinearKernels& linear_kernels();

}  // namespace sparsespan
