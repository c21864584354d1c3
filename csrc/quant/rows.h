#pragma once

// Checks and loads that several ops of this family share.

#include <algorithm>
#include <cstddef>
#include <string_view>

#include "core/convert.h"
#include "core/tensor.h"

namespace sparsespan {

// ValueError naming the first row and column of `x` [T, N] (float32 or bfloat16) that holds a NaN or an infinity. With
// `slot_mapping` [T] given, rows whose slot is -1 are not read.
void require_finite(std::string_view op, std::string_view argument, const Tensor& x, const Tensor& slot_mapping,
                    int threads);

// slot_mapping [T]: -1, or a slot in [0, slots) that stands there once. IndexError and ValueError name the rows.
void require_slots(std::string_view op, const Tensor& slot_mapping, std::int64_t slots);

// Column `begin` of row `t`.
inline const std::byte* element_at(const Tensor& x, std::int64_t t, std::int64_t begin) {
  return static_cast<const std::byte*>(x.data) + (t * x.strides[0] + begin) * size_of(x.dtype);
}

// `n` elements from column `begin` of row `t`, in float32: in place where they are float32, else in `buffer`.
inline const float* load_floats(const Tensor& x, std::int64_t t, std::int64_t begin, std::int64_t n, float* buffer) {
  const std::int64_t at = t * x.strides[0] + begin;
  if (x.dtype == DType::float32) return static_cast<const float*>(x.data) + at;
  row_to_float(static_cast<const BFloat16*>(x.data) + at, buffer, n);
  return buffer;
}

}  // namespace sparsespan
