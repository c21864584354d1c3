#pragma once

#include <algorithm>

#include "core/tensor.h"
#include "kernels/attention.h"

namespace sparsespan {

// Rows [row, head, :] of a checked [S, H, D] array of float32 or bfloat16, as float32.
class HeadRows {
 public:
  explicit HeadRows(const Tensor& t)
      : data_(t.data),
        narrow_(t.dtype == DType::bfloat16),
        row_(t.strides[0]),
        head_(t.strides[1]),
        n_(t.shape[2]),
        kernels_(attention_kernels()) {}

  void load(std::int64_t row, std::int64_t head, float* out) const {
    const std::int64_t offset = row * row_ + head * head_;
    if (narrow_) {
      kernels_.load_bf16(static_cast<const std::uint16_t*>(data_) + offset, out, n_);
    } else {
      std::copy_n(static_cast<const float*>(data_) + offset, n_, out);
    }
  }

 private:
  const void* data_;
  bool narrow_;
  std::int64_t row_;
  std::int64_t head_;
  std::int64_t n_;
  const AttentionKernels& kernels_;
};

}  // namespace sparsespan
