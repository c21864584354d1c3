#pragma once

#include <string>

namespace sparsespan {

// GOMP_parallel of whichever OpenMP runtime the process uses; libgomp, libiomp5 and libomp all export it.
struct OpenMpRuntime {
  using Parallel = void (*)(void (*function)(void*), void* data, unsigned threads, unsigned flags);
  Parallel parallel = nullptr;  // null: none could be found, run serially
  std::string description;
};

// Looked up at the first call, and again whenever the process has loaded further libraries, so that a later
// `import torch` is honoured.
OpenMpRuntime openmp_runtime();

}  // namespace sparsespan
