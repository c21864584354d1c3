#include "kernels/attention.h"

#include "kernels/dispatch.h"

namespace sparsespan {

extern const AttentionKernels generic_attention_kernels;
extern const AttentionKernels avx2_attention_kernels;
extern const AttentionKernels avx512_attention_kernels;

const AttentionKernels& attention_kernels() {
  return choose_kernels<AttentionKernels>({&generic_attention_kernels, SPARSESPAN_AVX2(avx2_attention_kernels),
                                           SPARSESPAN_AVX512(avx512_attention_kernels), nullptr});
}

}  // namespace sparsespan
