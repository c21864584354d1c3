#include "kernels/topk.h"

#include "kernels/dispatch.h"

namespace sparsespan {

extern const TopkKernels generic_topk_kernels;
extern const TopkKernels avx2_topk_kernels;
extern const TopkKernels avx512_topk_kernels;

const TopkKernels& topk_kernels() {
  return choose_kernels<TopkKernels>(
      {&generic_topk_kernels, SPARSESPAN_AVX2(avx2_topk_kernels), SPARSESPAN_AVX512(avx512_topk_kernels), nullptr});
}

}  // namespace sparsespan
