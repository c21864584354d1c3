#pragma once

#include "core/tensor.h"

namespace sparsespan {

struct MergeStatesParams {
  Tensor outs;       // [n, T, H, D] float32 or bfloat16, each normalised by its own sum
  Tensor lses;       // [n, T, H] float32, natural log, without the sink; +inf and -inf mean empty
  Tensor attn_sink;  // [H] float32, natural-unit logit; or not given
  Tensor out;        // [T, H, D] float32 or bfloat16
  Tensor lse;        // [T, H] float32, without the sink
  int threads = 0;
};

// Attention over the union of n disjoint sets of keys, from attention over each. Pairs are merged in float32 in the
// tree of strides P/2, ..., 2, 1 with P the power of two at or above n: i with i + stride.
void merge_states(const MergeStatesParams& params);

}  // namespace sparsespan
