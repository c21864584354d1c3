#pragma once

#include "core/tensor.h"

namespace sparsespan {

// Where rms_norm rounds to the dtype of x.
enum class NormCast : std::uint8_t {
  after,   // once, after the product with w (DeepSeek's own code)
  before,  // before the product with w, and again after it (transformers)
};

struct RmsNormParams {
  Tensor x;             // [T, n] float32 or bfloat16
  Tensor residual;      // [T, n] dtype of x; not given: plain RMSNorm
  Tensor w;             // [n] float32 or bfloat16
  Tensor out;           // [T, n] dtype of x; may be x itself
  Tensor residual_out;  // [T, n] dtype of x; may be residual itself; given if and only if residual is
  float eps = 0.0F;
  NormCast cast = NormCast::after;
  int threads = 0;
};

// r = x + residual in float32; out[t] = round(r * (1 / sqrt(mean(r^2) + eps)) * w); residual_out = round(r).
void rms_norm(const RmsNormParams& params);

struct LayerNormParams {
  Tensor x;    // [T, n] float32 or bfloat16
  Tensor w;    // [n] float32 or bfloat16
  Tensor b;    // [n] float32 or bfloat16
  Tensor out;  // [T, n] dtype of x; may be x itself
  float eps = 1e-6F;
  int threads = 0;
};

// out[t] = round((x - mean(x)) * (1 / sqrt(var(x) + eps)) * w + b), biased variance, float32, one rounding.
void layer_norm(const LayerNormParams& params);

}  // namespace sparsespan
