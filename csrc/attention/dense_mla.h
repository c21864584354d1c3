#pragma once

#include "core/tensor.h"
#include "quant/layout.h"

namespace sparsespan {

struct DenseMlaParams {
  Tensor q;               // [T, H, 576] float32 or bfloat16; with q_pe its first 512 columns
  Tensor q_pe;            // [T, H, 64] same dtype, or not given
  Tensor kv_cache;        // paged cache of `layout`
  Tensor row_to_request;  // [T] int, request of each row; rows of one request stand in order
  Tensor context_lens;    // [B] int, tokens of each request, its new rows included
  Tensor block_table;     // [B, pages] int; entries past a request's length are never read
  KvLayout layout = KvLayout::bf16_576;
  std::int64_t page_size = 0;
  float sm_scale = 0;
  Tensor out;  // [T, H, 512] float32 or bfloat16
  Tensor lse;  // [T, H] float32, natural log
  Validate validate = Validate::full;
  int threads = 0;
};

// The i-th of a request's n rows attends to its tokens at logical positions below L - n + i + 1.
void dense_mla(const DenseMlaParams& params);

}  // namespace sparsespan
