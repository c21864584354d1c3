#pragma once

// Inner loops of csrc/indexer. noexcept, single-threaded, fixed order of arithmetic.
//
// A panel holds `panel_keys` keys, packed once for all query rows that see them; a packed query serves all panels. What
// a packed form looks like is the level's own affair: float32 lanes across keys, or pairs of bfloat16. Which panel or
// lane a key falls into, what stands beside it and which form was packed change no bit of its score.

#include <cstdint>

#include "kernels/scope.h"

namespace sparsespan {

enum class Narrow : std::uint8_t { float32, bfloat16, e4m3 };

struct IndexerKernels {
  int panel_keys;
  // out[n] = the values of row as float32. Absent (null) from the tables of narrow products.
  void (*decode)(const void* row, Narrow type, const float* e4m3_table, std::int64_t n, float* out) noexcept = nullptr;
  // Floats that a packed query row and a panel take; the panel's hold room for score's own work behind the keys.
  std::int64_t (*query_floats)(std::int64_t heads, std::int64_t dim) noexcept;
  std::int64_t (*panel_floats)(std::int64_t heads, std::int64_t dim) noexcept;
  // `few`: hardly a row will share each panel, so packing keys should be cheap. The same for query, panel and score.
  // Head h lies at q + h * head_bytes. e4m3_table: the 256 decoded codes.
  void (*pack_query)(const void* q, std::int64_t head_bytes, Narrow type, const float* e4m3_table, std::int64_t heads,
                     std::int64_t dim, bool few, float* packed) noexcept;
  void (*pack)(const void* const* rows, Narrow type, const float* e4m3_table, std::int64_t dim, bool few,
               float* panel) noexcept;
  // scores[j] = (sum_h relu(q[h] . key[j]) * weights[h]) * scale[j] for begin <= j < end, what stands elsewhere in
  // scores[0, panel_keys) is undefined; scale may be null.
  void (*score)(const float* q, const float* weights, std::int64_t heads, std::int64_t dim, float* panel, bool few,
                const float* scale, int begin, int end, float* scores) noexcept;
  TileSwitch tiles = {};  // to be held on (KernelScope) around pack and score
};

// `narrow`: queries and keys are bfloat16 or e4m3, so that products of bfloat16 lose nothing.
const IndexerKernels& indexer_kernels(bool narrow = false);

}  // namespace sparsespan
