#include "kernels/quant.h"

#include "kernels/simd/vec_avx512.h"

#include "kernels/simd/code_avx512.h"
#include "kernels/simd/decode_avx512.h"
#include "kernels/simd/half_steps_avx512.h"
#include "kernels/simd/store_avx512.h"

#include "kernels/simd/halves_avx512.h"

#include "kernels/simd/tile_vbmi.h"

#include "kernels/body/element.h"
#include "kernels/body/scale.h"

#include "kernels/body/quant.h"

namespace sparsespan {

extern const QuantKernels avx512_bf16_quant_kernels;
const QuantKernels avx512_bf16_quant_kernels = kTable;

}  // namespace sparsespan
