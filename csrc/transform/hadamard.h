#pragma once

#include "core/tensor.h"

namespace sparsespan {

struct HadamardParams {
  Tensor x;    // [T, n] float32 or bfloat16, n a power of two
  Tensor out;  // [T, n] dtype of x
  float scale = 1.0F;
  int threads = 0;
};

// out[t] = round(scale * H_n x[t]), Sylvester order, butterflies and scale in float32, one rounding at the end.
void hadamard_transform(const HadamardParams& params);

}  // namespace sparsespan
