#pragma once

#include <string>

#include "core/tensor.h"
#include "indexer/candidates.h"

namespace sparsespan {

struct SelectParams {
  Tensor q;        // [T, Hi, D] float8_e4m3fn, bfloat16 or float32
  Tensor k;        // [S, D] the same dtypes, chosen apart
  Tensor weights;  // [T, Hi] float32
  Tensor ks;       // [T] int32 or int64, packed rows of k
  Tensor ke;       // [T]
  Tensor k_scale;  // [S] float32, or not given; only with float8 keys
  Tensor out;      // [T, K] int32, packed indices
  std::int64_t topk = 0;
  indexer::NanRule nan = indexer::NanRule::raise;
  Validate validate = Validate::full;
  int threads = 0;
};

// out = topk(mqa_logits(...), lengths = ke - ks, row_starts = ks), bit for bit, without the [T, S] logits.
void select(const SelectParams& params);

struct PagedSelectParams {
  Tensor q;             // [B, next_n, Hi, 128] or [T, Hi, 128] float8_e4m3fn, bfloat16 or float32; T = B * next_n
  Tensor kv_cache;      // [pages, page_size, width] by layout
  Tensor weights;       // [T, Hi] float32
  Tensor context_lens;  // [B] (row t of n sees length - n + t + 1 keys) or [B, next_n], int32 or int64
  Tensor block_table;   // [B, max_blocks] pages; what lies past a request's length is never read
  Tensor out;           // [T, K] int32, logical indices
  std::int64_t page_size = 0;
  std::int64_t topk = 0;
  std::string layout = "index_132";
  indexer::NanRule nan = indexer::NanRule::raise;
  indexer::Ranked ranked;
  Validate validate = Validate::full;
  int threads = 0;
};

// The same over a paged cache: topk(paged_mqa_logits(...), lengths).
void paged_select(const PagedSelectParams& params);

}  // namespace sparsespan
