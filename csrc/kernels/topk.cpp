#include "kernels/topk.h"

#include "kernels/dispatch.h"

namespace sparsespan {

extern const TopkKernels generic_topk_kernels;
#ifdef SPARSESPAN_HAVE_AVX512
extern const TopkKernels avx512_topk_kernels;
#endif

const TopkKernels& topk_kernels() {
#ifdef SPARSESPAN_HAVE_AVX512
  const TopkKernels* avx512 = &avx512_topk_kernels;
#else
  const TopkKernels* avx512 = nullptr;
#endif
  return choose_kernels<TopkKernels>({&generic_topk_kernels, nullptr, avx512, nullptr});
}

}  // namespace sparsespan
