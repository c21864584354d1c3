#pragma once

// Inner loops of csrc/indexer. noexcept, single-threaded, fixed order of arithmetic.
//
// Lanes run across keys: a panel holds `panel_keys` keys as float32, dimension by dimension, so that every score is one
// chain of multiply-adds over d ascending and one over h ascending. Which panel or lane a key falls into, and what
// stands beside it, changes no bit of its score.

#include <cstdint>

namespace sparsespan {

enum class Narrow : std::uint8_t { float32, bfloat16, e4m3 };

struct IndexerKernels {
  int panel_keys;
  // out[n] = the values of row as float32. e4m3_table: the 256 decoded codes.
  void (*decode)(const void* row, Narrow type, const float* e4m3_table, std::int64_t n, float* out) noexcept;
  // panel[d][j] = rows[j][d] for the panel_keys rows.
  void (*pack)(const void* const* rows, Narrow type, const float* e4m3_table, std::int64_t dim, float* panel) noexcept;
  // scores[j] = (sum_h relu(sum_d q[h][d] * panel[d][j]) * weights[h]) * scale[j]; scale may be null.
  void (*score)(const float* q, const float* weights, std::int64_t heads, std::int64_t dim, const float* panel,
                const float* scale, float* scores) noexcept;
};

const IndexerKernels& indexer_kernels();

}  // namespace sparsespan
