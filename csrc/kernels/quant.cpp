#include "kernels/quant.h"

#include "kernels/dispatch.h"

namespace sparsespan {

extern const QuantKernels generic_quant_kernels;
extern const QuantKernels avx2_quant_kernels;
extern const QuantKernels avx512_quant_kernels;
extern const QuantKernels avx512_bf16_quant_kernels;

const QuantKernels& quant_kernels() {
  return choose_kernels<QuantKernels>({&generic_quant_kernels, SPARSESPAN_AVX2(avx2_quant_kernels),
                                       SPARSESPAN_AVX512(avx512_quant_kernels),
                                       SPARSESPAN_AVX512_BF16(avx512_bf16_quant_kernels), nullptr});
}

}  // namespace sparsespan
