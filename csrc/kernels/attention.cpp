#include "kernels/attention.h"

#include "kernels/dispatch.h"

namespace sparsespan {

extern const AttentionKernels generic_attention_kernels;
extern const AttentionKernels avx2_attention_kernels;
extern const AttentionKernels avx512_attention_kernels;
extern const NarrowAttentionKernels avx512_bf16_attention_kernels;
extern const NarrowAttentionKernels amx_attention_kernels;
extern const NarrowAttentionKernels amx_emulated_attention_kernels;

const AttentionKernels& attention_kernels() {
  return choose_kernels<AttentionKernels>({&generic_attention_kernels, SPARSESPAN_AVX2(avx2_attention_kernels),
                                           SPARSESPAN_AVX512(avx512_attention_kernels), nullptr});
}

const NarrowAttentionKernels* narrow_attention_kernels() {
  switch (active_isa()) {
    case Isa::avx512_bf16: return SPARSESPAN_AVX512_BF16(avx512_bf16_attention_kernels);
    case Isa::amx: return SPARSESPAN_AMX(amx_attention_kernels, amx_emulated_attention_kernels);
    default: return nullptr;
  }
}

}  // namespace sparsespan
