#pragma once

// Inner loops of csrc/transform. noexcept, single-threaded, fixed order of arithmetic: the results are the same at
// every level. Rows come as float32 or, where `bfloat16` says so, as bfloat16; strides count elements.

#include <cstdint>

namespace sparsespan {

// out = scale * H_n in for each of `rows` rows, n a power of two, butterflies in float32 for len = 1, 2, 4, ...
struct HadamardRows {
  const void* in;
  void* out;
  std::int64_t in_stride;
  std::int64_t out_stride;
  std::int64_t rows;
  std::int64_t n;
  float* scratch;  // [n]
  float scale;
  bool bfloat16;
  bool stream;  // out is not read again soon: past the caches where the addresses allow it
};

// The heads of one token, each pair (a, b) turned to (a cos - b sin, a sin + b cos). `in` and `out` may be the same.
struct RopeHeads {
  const void* in;
  void* out;
  std::int64_t in_stride;
  std::int64_t out_stride;
  std::int64_t heads;
  const float* table;  // cos[half] | sin[half]
  std::int64_t half;
  float* scratch;  // [4 * half]
  bool bfloat16;
  bool stream;  // out is not read again soon, nor is it `in`; a hint that needs a fence() afterwards
};

// Rows of n >= 1. Row sums: element i goes to partial i % 16, partials merge in strides 8, 4, 2, 1.
struct NormRows {
  const void* x;
  const void* residual;  // added to x first; or null
  void* residual_out;    // x + residual
  void* out;             // may be x, as residual_out may be residual
  std::int64_t x_stride;
  std::int64_t residual_stride;
  std::int64_t residual_out_stride;
  std::int64_t out_stride;
  const float* w;
  const float* b;  // or null
  float* row;      // scratch [n]
  std::int64_t rows;
  std::int64_t n;
  float eps;
  bool bfloat16;
  bool cast_before;  // the normalised value is rounded before it meets w
};

struct TransformKernels {
  void (*hadamard)(const HadamardRows&) noexcept;
  void (*rope_half_split)(const RopeHeads&) noexcept;   // pairs (i, i + half)
  void (*rope_interleaved)(const RopeHeads&) noexcept;  // pairs (2i, 2i + 1)
  void (*fence)() noexcept;                             // after the last streamed heads of a task
  void (*rms_norm)(const NormRows&) noexcept;           // x / sqrt(mean(x^2) + eps) * w
  void (*layer_norm)(const NormRows&) noexcept;         // (x - mean) / sqrt(var + eps) * w + b
};

const TransformKernels& transform_kernels();

}  // namespace sparsespan
