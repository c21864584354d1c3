#pragma once

#include "core/tensor.h"
#include "quant/scale.h"

namespace sparsespan {

struct ActQuantParams {
  Tensor x;      // [T, N] float32 or bfloat16
  Tensor y;      // [T, N] float8_e4m3fn
  Tensor scale;  // [T, N / block_size] float32
  std::int64_t block_size = 128;
  ScaleRule rule = ScaleRule::official_f32;
  Validate validate = Validate::full;
  int threads = 0;
};

// Per group of block_size elements: one scale by the rule, y = e4m3(clamp(x / scale, -448, 448)).
void act_quant(const ActQuantParams& params);

struct WeightDequantParams {
  Tensor w;      // [M, N] float8_e4m3fn
  Tensor scale;  // [ceil(M / block), ceil(N / block)] float32 or float8_e8m0fnu: a multiplier
  Tensor out;    // [M, N] bfloat16 or float32
  std::int64_t block = 128;
  Validate validate = Validate::full;
  int threads = 0;
};

// out[i, j] = round(float(w[i, j]) * scale[i / block, j / block]); blocks at the edges may be smaller.
void weight_dequant(const WeightDequantParams& params);

}  // namespace sparsespan
