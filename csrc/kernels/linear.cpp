#include "kernels/linear.h"

#include "kernels/dispatch.h"

namespace sparsespan {

extern const LinearKernels generic_linear_kernels;
extern const LinearKernels avx2_linear_kernels;
extern const LinearKernels avx512_linear_kernels;

const LinearKernels& linear_kernels() {
  return choose_kernels<LinearKernels>({&generic_linear_kernels, SPARSESPAN_AVX2(avx2_linear_kernels),
                                        SPARSESPAN_AVX512(avx512_linear_kernels), nullptr});
}

}  // namespace sparsespan
