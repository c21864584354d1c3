#pragma once

#include "core/tensor.h"

namespace sparsespan {

// Multi-head attention on expanded heads. H is a multiple of Hk: query head h uses key head h / (H / Hk).
struct MhaParams {
  Tensor q;     // [Tq, H, Dqk] float32 or bfloat16
  Tensor k;     // [Tk, Hk, Dqk] float32 or bfloat16
  Tensor v;     // [Tk, Hk, Dv] float32 or bfloat16
  Tensor cu_q;  // [B + 1] int, 0 ... Tq ascending: rows of request b are cu_q[b] .. cu_q[b + 1] - 1
  Tensor cu_k;  // [B + 1] int, 0 ... Tk ascending, likewise
  float sm_scale = 0;
  bool causal = true;  // bottom-right: the i-th of n rows sees the first L - n + i + 1 of the request's L keys
  Tensor out;          // [Tq, H, Dv] float32 or bfloat16
  Tensor lse;          // [Tq, H] float32, natural log
  int threads = 0;
};

void mha(const MhaParams& params);

struct SparseMhaParams {
  Tensor q;            // [T, H, Dqk] float32 or bfloat16
  Tensor k;            // [S, Hk, Dqk] float32 or bfloat16
  Tensor v;            // [S, Hk, Dv] float32 or bfloat16
  Tensor indices;      // [T, K] or [T, 1, K] int32 or int64: packed rows of k and v; -1 = none
  Tensor topk_length;  // [T] int, columns of `indices` in use; or not given: all
  float sm_scale = 0;
  Tensor out;  // [T, H, Dv] float32 or bfloat16
  Tensor lse;  // [T, H] float32, natural log
  Validate validate = Validate::full;
  int threads = 0;
};

// Each row attends to the keys that its indices name, the same for all heads.
void sparse_mha(const SparseMhaParams& params);

}  // namespace sparsespan
