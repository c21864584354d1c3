#pragma once

// The seven layouts as runs: which stretch of which request goes to which rank. A visitor is called in the order in
// which rows lie on a rank; `phase` 1 comes after all of phase 0 (zigzag: all front blocks, then all back blocks).
// Empty pieces are never visited, so that the work is O(rows) and not O(requests * ranks).

#include <algorithm>
#include <cstdint>

#include "core/scratch.h"
#include "parallel/cp_plan.h"

namespace sparsespan {

struct CpRun {
  std::int64_t rank;
  int phase;
  std::int64_t request;
  std::int64_t first;  // offset of the first row in the request; offsets past its length are padding
  std::int64_t count;
  std::int64_t stride;
};

// Rows on which the flat schemes count: everything but the rows that stand on every rank.
inline std::int64_t split_rows(const CpBatch& b) {
  std::int64_t n = 0;
  for (std::int64_t s = 0; s < b.requests(); ++s) n += b.whole[s] != 0 ? 0 : b.split_len[s];
  return n;
}

// Local rows that contiguous_flat gives to every rank (besides decode rows): ceil(padded stream / N).
inline std::int64_t flat_share(const CpBatch& b) {
  const std::int64_t pads = b.pad_to < 0 ? 0 : b.pad_to - b.rows();
  return ceil_div(split_rows(b) + pads, b.world_size);
}

namespace detail {

template <class Visit>
void visit_whole(const CpBatch& b, std::int64_t s, Visit& visit) {
  if (b.length(s) == 0) return;
  for (std::int64_t r = 0; r < b.world_size; ++r) visit(CpRun{r, 0, s, 0, b.length(s), 1});
}

// 2N blocks, the first L % 2N of them one row longer; rank r owns block r and block 2N - 1 - r.
template <class Visit>
void visit_blocks(const CpBatch& b, std::int64_t s, Visit& visit) {
  const std::int64_t n = 2 * b.world_size;
  const std::int64_t base = b.split_len[s] / n;
  const std::int64_t rest = b.split_len[s] % n;
  std::int64_t first = 0;
  for (std::int64_t k = 0; k < (base > 0 ? n : rest); ++k) {
    const bool front = k < b.world_size;
    const std::int64_t count = base + (k < rest ? 1 : 0);
    visit(CpRun{front ? k : n - 1 - k, front ? 0 : 1, s, first, count, 1});
    first += count;
  }
}

// 2N chunks of ceil(L / 2N): the last ones short or empty, or (padded) filled up with padding.
template <class Visit>
void visit_chunks(const CpBatch& b, std::int64_t s, Visit& visit) {
  const std::int64_t n = 2 * b.world_size;
  const std::int64_t length = b.split_len[s];
  const std::int64_t chunk = ceil_div(length, n);
  const std::int64_t end = b.scheme == CpScheme::zigzag_padded ? chunk * n : length;
  for (std::int64_t k = 0; k < n && k * chunk < end; ++k) {
    // vLLM moves rows that start a sequence behind all others, for attention backends that want them last.
    const bool last = b.flavor == CpFlavor::vllm || b.flavor == CpFlavor::vllm_ascend;
    const int phase = b.scheme == CpScheme::ceil_chunk && last && k == 0 && b.prefix[s] == 0 ? 1 : 0;
    visit(CpRun{k < b.world_size ? k : n - 1 - k, phase, s, k * chunk, std::min(chunk, end - k * chunk), 1});
  }
}

template <class Visit>
void visit_even(const CpBatch& b, std::int64_t s, Visit& visit) {
  const std::int64_t length = b.split_len[s];
  // Block r is [L * r / N, L * (r + 1) / N): the rank that owns row i is the first whose block ends after it.
  for (std::int64_t i = 0; i < length;) {
    const std::int64_t rank = ceil_div(b.world_size * (i + 1), length) - 1;
    const std::int64_t end = length * (rank + 1) / b.world_size;
    visit(CpRun{rank, 0, s, i, end - i, 1});
    i = end;
  }
}

// `flat` = index of the request's first row among the rows that are split.
template <class Visit>
void visit_interleaved(const CpBatch& b, std::int64_t s, std::int64_t flat, Visit& visit) {
  const std::int64_t length = b.split_len[s];
  for (std::int64_t i = 0; i < std::min(length, b.world_size); ++i) {
    visit(CpRun{(flat + i) % b.world_size, 0, s, i, ceil_div(length - i, b.world_size), b.world_size});
  }
}

template <class Visit>
void visit_flat(const CpBatch& b, std::int64_t s, std::int64_t flat, std::int64_t share, Visit& visit) {
  const std::int64_t length = b.split_len[s];
  for (std::int64_t i = 0; i < length;) {
    const std::int64_t rank = (flat + i) / share;
    const std::int64_t end = std::min(length, (rank + 1) * share - flat);
    visit(CpRun{rank, 0, s, i, end - i, 1});
    i = end;
  }
}

}  // namespace detail

template <class Visit>
void for_each_run(const CpBatch& b, Visit&& visit) {
  const std::int64_t share = b.scheme == CpScheme::contiguous_flat ? flat_share(b) : 0;
  std::int64_t flat = 0;
  for (std::int64_t s = 0; s < b.requests(); ++s) {
    if (b.whole[s] != 0) {
      detail::visit_whole(b, s, visit);
      continue;
    }
    switch (b.scheme) {
      case CpScheme::zigzag: detail::visit_blocks(b, s, visit); break;
      case CpScheme::zigzag_padded:
      case CpScheme::ceil_chunk:
      case CpScheme::thd_even: detail::visit_chunks(b, s, visit); break;
      case CpScheme::interleave: detail::visit_interleaved(b, s, flat, visit); break;
      case CpScheme::contiguous: detail::visit_even(b, s, visit); break;
      case CpScheme::contiguous_flat: detail::visit_flat(b, s, flat, share, visit); break;
    }
    flat += b.split_len[s];
  }
}

}  // namespace sparsespan
