#pragma once

// Checks that several ops of this family share.

#include <string_view>

#include "core/check.h"
#include "core/tensor.h"

namespace sparsespan {

// [T, H, dim], float32 or bfloat16, last axis contiguous.
void require_heads(std::string_view op, std::string_view argument, const Tensor& t, std::string_view names);
// q alone, or q and q_pe side by side; returns the width of the two together. The first part holds the values
// (d_v columns).
std::int64_t require_queries(std::string_view op, const Tensor& q, const Tensor& q_pe, std::int64_t d_v);
// k [S, Hk, Dqk] and v [S, Hk, Dv] against q [T, H, Dqk]; returns query heads per key head.
std::int64_t require_key_heads(std::string_view op, const Tensor& q, const Tensor& k, const Tensor& v);
void require_scale(std::string_view op, float sm_scale);
// [H] float32 without NaN, or not given.
void require_sink(std::string_view op, const Tensor& attn_sink, std::int64_t heads);

// The op's outputs: out [T, H, d_v] float32 or bfloat16, lse [T, H] and, where the op has it, max_logits [T, H].
struct AttentionOutputs {
  const Tensor* out;
  const Tensor* lse;
  const Tensor* max_logits;  // null: this op has none
};
void require_outputs(std::string_view op, const AttentionOutputs& outputs, std::int64_t rows, std::int64_t heads,
                     std::int64_t d_v, std::initializer_list<const Tensor*> inputs);

// How far into each row indices are read, and what stands there.
struct IndexCheck {
  const Tensor& indices;      // [T, K]
  const Tensor& topk_length;  // [T] or not given
  const Tensor& lane_of;      // [T, K] or not given
  std::int64_t size;          // an index is -1 or in [0, size)
  std::string_view space;     // "packed rows of kv"
};
void require_indices(std::string_view op, const IndexCheck& check, Validate validate, int threads);

// [T, 1, K] (the peers' form) seen as [T, K].
Tensor squeeze_head_axis(std::string_view op, std::string_view argument, const Tensor& t);

}  // namespace sparsespan
