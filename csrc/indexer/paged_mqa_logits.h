#pragma once

#include <string>

#include "core/tensor.h"

namespace sparsespan {

struct PagedMqaLogitsParams {
  Tensor q;             // [B, next_n, Hi, 128] or [T, Hi, 128] float8_e4m3fn, bfloat16 or float32; T = B * next_n
  Tensor kv_cache;      // [pages, page_size, width] by layout
  Tensor weights;       // [T, Hi] float32
  Tensor context_lens;  // [B] (row t of n sees length - n + t + 1 keys) or [B, next_n], int32 or int64
  Tensor block_table;   // [B, max_blocks] pages; what lies past a request's length is never read
  Tensor out;           // [T, max_context_len] float32
  std::int64_t page_size = 0;
  std::int64_t max_context_len = 0;
  std::string layout = "index_132";
  bool clean_logits = true;
  Validate validate = Validate::full;
  int threads = 0;
};

// out[row, s] = (sum_h relu(q[row, h] . k[s]) * weights[row, h]) * scale[s] for s below the row's length, logical
// positions; else -inf when clean_logits, untouched otherwise.
void paged_mqa_logits(const PagedMqaLogitsParams& params);

}  // namespace sparsespan
