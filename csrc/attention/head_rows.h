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
  void prefetch(std::int64_t row, std::int64_t head) const {
    const std::int64_t size = narrow_ ? 2 : 4;
    const char* at = static_cast<const char*>(data_) + (row * row_ + head * head_) * size;
    for (std::int64_t i = 0; i < n_ * size; i += 64) __builtin_prefetch(at + i);
  }
  // The row itself, when it is bfloat16.
  const std::uint16_t* narrow(std::int64_t row, std::int64_t head) const {
    return static_cast<const std::uint16_t*>(data_) + row * row_ + head * head_;
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
