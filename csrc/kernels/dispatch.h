#pragma once

// Each family has one struct of kernel function pointers and one constant instance per ISA level. A level without
// an instance uses the best one below it.

#include <array>

#include "core/isa.h"

// &table where that level was built, else nullptr (its files are not in the library then).
#ifdef SPARSESPAN_HAVE_AVX2
#define SPARSESPAN_AVX2(table) &(table)
#else
#define SPARSESPAN_AVX2(table) nullptr
#endif
#ifdef SPARSESPAN_HAVE_AVX512
#define SPARSESPAN_AVX512(table) &(table)
#else
#define SPARSESPAN_AVX512(table) nullptr
#endif
#ifdef SPARSESPAN_HAVE_AVX512_BF16
#define SPARSESPAN_AVX512_BF16(table) &(table)
#else
#define SPARSESPAN_AVX512_BF16(table) nullptr
#endif
#ifdef SPARSESPAN_HAVE_AMX
#define SPARSESPAN_AMX(table, emulated) (amx_emulated() ? &(emulated) : &(table))
#else
#define SPARSESPAN_AMX(table, emulated) nullptr
#endif

namespace sparsespan {

template <class Table>
const Table& choose_kernels(const std::array<const Table*, kIsaCount>& levels) {
  for (int i = static_cast<int>(active_isa()); i > 0; --i) {
    if (levels[i] != nullptr) return *levels[i];
  }
  return *levels[0];
}

}  // namespace sparsespan
