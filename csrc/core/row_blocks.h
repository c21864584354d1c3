#pragma once

// Rows in blocks: for kernels that take many rows at once.

#include <algorithm>
#include <cstdint>

#include "core/parallel.h"

namespace sparsespan {

// Rows of one block: those of rows_per_task, or four times as many where there is plenty to share out.
inline std::int64_t rows_per_block(std::int64_t rows, std::int64_t elements_per_row) {
  constexpr std::int64_t kPlenty = 256;
  const std::int64_t step = rows_per_task(elements_per_row);
  return rows / step >= kPlenty ? 4 * step : step;
}

inline int block_team_size(std::int64_t rows, std::int64_t elements_per_row, int threads) {
  const std::int64_t step = rows_per_block(rows, elements_per_row);
  return team_size((rows + step - 1) / step, threads);
}

// Calls body(first, last, slot) for blocks of neighbouring rows, slot < block_team_size.
template <class Body>
void parallel_row_blocks(std::int64_t rows, std::int64_t elements_per_row, int threads, const Body& body) {
  const std::int64_t step = rows_per_block(rows, elements_per_row);
  parallel_for((rows + step - 1) / step, threads,
               [&](std::int64_t block, int slot) { body(block * step, std::min(rows, (block + 1) * step), slot); });
}

}  // namespace sparsespan
