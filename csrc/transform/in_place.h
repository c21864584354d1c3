#pragma once

// Which outputs of this family may lie over their input: exactly the same elements in the same places, or none of
// them. The ops stage a row before they store it, so the former is safe; a shifted overlap is not.

#include "core/tensor.h"

namespace sparsespan {

inline bool is_same_view(const Tensor& a, const Tensor& b) {
  if (a.data != b.data || a.dtype != b.dtype || a.rank != b.rank) return false;
  for (int i = 0; i < a.rank; ++i) {
    if (a.shape[i] != b.shape[i] || (a.shape[i] > 1 && a.strides[i] != b.strides[i])) return false;
  }
  return true;
}

// The input as require_output shall see it: absent when `out` is that very view.
inline const Tensor* unless_in_place(const Tensor& input, const Tensor& out) {
  static const Tensor absent;
  return is_same_view(input, out) ? &absent : &input;
}

}  // namespace sparsespan
