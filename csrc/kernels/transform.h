#pragma once

// Inner loops of csrc/transform. noexcept, single-threaded, fixed order of arithmetic.

#include <cstdint>

namespace sparsespan {

struct TransformKernels {
  // In place: data[n] = scale * H_n data, n a power of two, butterflies in float32 for len = 1, 2, 4, ...
  void (*hadamard)(float* data, std::int64_t n, float scale) noexcept;

  // In place on data[2 * half], each pair (a, b) turned to (a cos - b sin, a sin + b cos); table: cos[half] |
  // sin[half].
  void (*rope_half_split)(float* data, const float* table, std::int64_t half) noexcept;   // pairs (i, i + half)
  void (*rope_interleaved)(float* data, const float* table, std::int64_t half) noexcept;  // pairs (2i, 2i + 1)

  // In place on data[n], n >= 1. Row sums: element i goes to partial i % 16, partials merge in strides 8, 4, 2, 1.
  void (*rms_normalise)(float* data, std::int64_t n, float eps) noexcept;    // x / sqrt(mean(x^2) + eps)
  void (*layer_normalise)(float* data, std::int64_t n, float eps) noexcept;  // (x - mean) / sqrt(var + eps)
  void (*scale_shift)(float* data, const float* w, const float* b,
                      std::int64_t n) noexcept;  // x * w + b; b may be null
};

const TransformKernels& transform_kernels();

}  // namespace sparsespan
