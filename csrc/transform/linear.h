#pragma once

#include "core/tensor.h"

namespace sparsespan {

struct LinearParams {
  Tensor x;      // [T, H, K] float32 or bfloat16; the last axis contiguous, here and below
  Tensor w;      // [H, N, K] float32, bfloat16, float16 or float8_e4m3fn
  Tensor scale;  // [ceil(N / block), ceil(K / block)] float32 or float8_e8m0fnu, a multiplier; only with float8, H = 1
  Tensor out;    // [T, H, N] float32 or bfloat16
  std::int64_t block = 128;
  Validate validate = Validate::full;
  int threads = 0;
};

// out[t, h, n] = round(sum_k x[t, h, k] * w[h, n, k]) in float32. Weights are widened a block at a time; float8 ones
// are bfloat16(code * scale), as weight_dequant gives. A row's bits depend on that row and the weights alone.
void linear(const LinearParams& params);

}  // namespace sparsespan
