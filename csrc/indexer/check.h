#pragma once

// What the ops of the family check alike, and how checked arguments become a ScoreProblem.

#include <string_view>

#include "core/tensor.h"
#include "indexer/scores.h"

namespace sparsespan::indexer {

// Index results are int32: more columns than that cannot be named.
void require_int32_columns(std::string_view op, std::string_view argument, std::int64_t columns);

// q [T, Hi, D] and weights [T, Hi] into `problem`; `batched` also takes q [B, next_n, Hi, D] with T = B * next_n.
void set_queries(std::string_view op, const Tensor& q, const Tensor& weights, bool batched, ScoreProblem& problem);

struct RaggedKeys {
  const Tensor& k;        // [S, D]
  const Tensor& k_scale;  // [S] or not given
  const Tensor& ks;       // [T]
  const Tensor& ke;       // [T]
};
// Keys as packed rows with a window per query row.
void set_ragged_keys(std::string_view op, const RaggedKeys& keys, Validate validate, ScoreProblem& problem);

struct PagedKeys {
  const Tensor& kv_cache;      // by layout
  const Tensor& context_lens;  // [B] or [B, next_n]
  const Tensor& block_table;   // [B, max_blocks]
  std::int64_t page_size;
  std::string_view layout;
  int threads = 0;  // that look at the scales
};
// Keys in a paged cache; a row's window is [0, its length), and `columns` becomes the longest of them.
void set_paged_keys(std::string_view op, const PagedKeys& keys, const Tensor& q, Validate validate,
                    ScoreProblem& problem);

}  // namespace sparsespan::indexer
