#pragma once

// Rows of narrow floats to and from float32. Plain loops: they vectorise at every baseline.

#include <cstdint>

#include "core/tensor.h"
#include "core/types.h"

namespace sparsespan {

template <class T>
inline void row_to_float(const T* in, float* out, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) out[i] = to_float(in[i]);
}

inline void row_from_float(const float* in, float* out, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) out[i] = in[i];
}

inline void row_from_float(const float* in, BFloat16* out, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) out[i] = to_bfloat16(in[i]);
}

// Calls f(T{}) with the element type behind a float dtype that validation has already narrowed to these.
template <class F>
decltype(auto) with_float_type(DType dtype, F&& f) {
  switch (dtype) {
    case DType::bfloat16: return f(BFloat16{});
    case DType::float8_e4m3fn: return f(Float8E4M3{});
    default: return f(float{});
  }
}

}  // namespace sparsespan
