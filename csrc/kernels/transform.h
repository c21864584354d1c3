#pragma once

// Inner loops of csrc/transform. noexcept, single-threaded, fixed order of arithmetic.

#include <cstdint>

namespace sparsespan {

struct TransformKernels {
  // In place: data[n] = scale * H_n data, n a power of two, butterflies in float32 for len = 1, 2, 4, ...
  void (*hadamard)(float* data, std::int64_t n, float scale) noexcept;
};

const TransformKernels& transform_kernels();

}  // namespace sparsespan
