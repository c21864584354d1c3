#include "kernels/attention.h"

#include "kernels/dispatch.h"

namespace sparsespan {

extern const AttentionKernels generic_attention_kernels;
#ifdef SPARSESPAN_HAVE_AVX512
extern const AttentionKernels avx512_attention_kernels;
#endif

const AttentionKernels& attention_kernels() {
#ifdef SPARSESPAN_HAVE_AVX512
  return choose_kernels<AttentionKernels>({&generic_attention_kernels, nullptr, &avx512_attention_kernels, nullptr});
#else
  return choose_kernels<AttentionKernels>({&generic_attention_kernels, nullptr, nullptr, nullptr});
#endif
}

}  // namespace sparsespan
