#pragma once

#include "core/tensor.h"

namespace sparsespan {

struct RopeParams {
  Tensor x;                  // [T, H, d] float32 or bfloat16, d even: all of the last axis is turned
  Tensor positions;          // [T] int32 or int64, logical, in [0, max_positions)
  Tensor cos_sin;            // [max_positions, d] float32, cos[d / 2] | sin[d / 2]
  Tensor out;                // [T, H, d] dtype of x; may be x itself
  bool interleaved = false;  // pairs (2i, 2i + 1), else (i, i + d / 2)
  Validate validate = Validate::full;
  int threads = 0;
};

// out[t, h] = round(x[t, h] turned by the angles of row positions[t]); float32 arithmetic, one rounding.
void apply_rope(const RopeParams& params);

}  // namespace sparsespan
