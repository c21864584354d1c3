#pragma once

// Each family has one struct of kernel function pointers and one constant instance per ISA level. A level without
// an instance uses the best one below it.

#include <array>

#include "core/isa.h"

namespace sparsespan {

template <class Table>
const Table& choose_kernels(const std::array<const Table*, kIsaCount>& levels) {
  for (int i = static_cast<int>(active_isa()); i > 0; --i) {
    if (levels[i] != nullptr) return *levels[i];
  }
  return *levels[0];
}

}  // namespace sparsespan
