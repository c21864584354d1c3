#include "kernels/transform.h"

#include "kernels/dispatch.h"

namespace sparsespan {

extern const TransformKernels generic_transform_kernels;
extern const TransformKernels avx2_transform_kernels;
extern const TransformKernels avx512_transform_kernels;
extern const TransformKernels avx512_bf16_transform_kernels;

const TransformKernels& transform_kernels() {
  return choose_kernels<TransformKernels>({&generic_transform_kernels, SPARSESPAN_AVX2(avx2_transform_kernels),
                                           SPARSESPAN_AVX512(avx512_transform_kernels),
                                           SPARSESPAN_AVX512_BF16(avx512_bf16_transform_kernels), nullptr});
}

}  // namespace sparsespan
