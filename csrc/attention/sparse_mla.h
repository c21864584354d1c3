#pragma once

#include <optional>

#include "core/tensor.h"
#include "quant/layout.h"

namespace sparsespan {

struct SparseMlaParams {
  Tensor q;     // [T, H, Dqk] float32 or bfloat16; with q_pe its first columns
  Tensor q_pe;  // [T, H, Dpe] same dtype, or not given
  Tensor kv;    // packed [S, Dqk] or [S, 1, Dqk] float32 or bfloat16; with a layout the paged cache
  std::optional<KvLayout> layout;
  std::int64_t page_size = 0;  // with a layout
  Tensor indices;              // [T, K] or [T, 1, K] int32 or int64: packed rows, or slots with a layout; -1 = none
  Tensor topk_length;          // [T] int, columns of `indices` in use; or not given: all
  Tensor attn_sink;            // [H] float32, natural-unit logit; or not given
  Tensor lane_of;              // [T, K] int, DCP lane 0..7 of each index; or not given
  float sm_scale = 0;
  std::int64_t d_v = 512;
  Tensor out;         // [T, H, d_v] float32 or bfloat16
  Tensor lse;         // [T, H] float32, natural log, without the sink
  Tensor max_logits;  // [T, H] float32, scaled, without the sink
  Validate validate = Validate::full;
  int threads = 0;
};

// out[t,h] = sum_j p_j kv[index_j, :d_v], p = softmax over the row's valid indices of sm_scale * q[t,h] . kv[index_j].
void sparse_mla(const SparseMlaParams& params);

}  // namespace sparsespan
