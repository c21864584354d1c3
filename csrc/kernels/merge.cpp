#include "kernels/merge.h"

#include "kernels/dispatch.h"

namespace sparsespan {

extern const MergeKernels generic_merge_kernels;
extern const MergeKernels avx2_merge_kernels;
extern const MergeKernels avx512_merge_kernels;

const MergeKernels& merge_kernels() {
  return choose_kernels<MergeKernels>(
      {&generic_merge_kernels, SPARSESPAN_AVX2(avx2_merge_kernels), SPARSESPAN_AVX512(avx512_merge_kernels), nullptr});
}

}  // namespace sparsespan
