#pragma once

#include "core/tensor.h"

namespace sparsespan {

struct MqaLogitsParams {
  Tensor q;        // [T, Hi, D] float8_e4m3fn, bfloat16 or float32
  Tensor k;        // [S, D] the same dtypes, chosen apart
  Tensor weights;  // [T, Hi] float32
  Tensor ks;       // [T] int32 or int64, packed rows of k
  Tensor ke;       // [T]
  Tensor k_scale;  // [S] float32, or not given; only with float8 keys
  Tensor out;      // [T, S] float32, or [T, max_seqlen_k]
  bool clean_logits = true;
  std::int64_t max_seqlen_k = 0;
  Validate validate = Validate::full;
  int threads = 0;
};

// out[t, s] = (sum_h relu(q[t, h] . k[s]) * weights[t, h]) * k_scale[s] for ks[t] <= s < ke[t]; else -inf when
// clean_logits, untouched otherwise. With max_seqlen_k > 0 column j is key ks[t] + j.
void mqa_logits(const MqaLogitsParams& params);

}  // namespace sparsespan
