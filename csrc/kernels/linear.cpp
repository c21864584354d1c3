#include "kernels/linear.h"

#include "kernels/dispatch.h"

namespace sparsespan {

extern const LinearKernels generic_linear_kernels;
#ifdef SPARSESPAN_HAVE_AVX512
extern const LinearKernels avx512_linear_kernels;
#endif

const LinearKernels& linear_kernels() {
#ifdef SPARSESPAN_HAVE_AVX512
  const LinearKernels* avx512 = &avx512_linear_kernels;
#else
  const LinearKernels* avx512 = nullptr;
#endif
  return choose_kernels<LinearKernels>({&generic_linear_kernels, nullptr, avx512, nullptr});
}

}  // namespace sparsespan
