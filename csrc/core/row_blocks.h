#pragma once

// Rows in blocks: for kernels that take many rows at once.

#include <algorithm>
#include <cstdint>

#include "core/parallel.h"

namespace sparsespan {

// Rows of one block: those of rows_per_task, or 4 or 16 times as many where that leaves each thread 32 blocks, because
// every block starts its streams through memory anew.
inline std::int64_t rows_per_block(std::int64_t rows, std::int64_t elements_per_row, int threads) {
  constexpr std::int64_t kPlenty = 32;
  const std::int64_t step = rows_per_task(elements_per_row);
  const std::int64_t each = rows / step / team_size(rows / step, threads);
  return each >= 16 * kPlenty ? 16 * step : each >= 4 * kPlenty ? 4 * step : step;
}

inline int block_team_size(std::int64_t rows, std::int64_t elements_per_row, int threads) {
  const std::int64_t step = rows_per_block(rows, elements_per_row, threads);
  return team_size((rows + step - 1) / step, threads);
}

// Calls body(first, last, slot) for blocks of neighbouring rows, slot < block_team_size.
template <class Body>
void parallel_row_blocks(std::int64_t rows, std::int64_t elements_per_row, int threads, const Body& body) {
  const std::int64_t step = rows_per_block(rows, elements_per_row, threads);
  parallel_for((rows + step - 1) / step, threads,
               [&](std::int64_t block, int slot) { body(block * step, std::min(rows, (block + 1) * step), slot); });
}

}  // namespace sparsespan
