#include "kernels/quant.h"

#include "kernels/simd/vec_avx2.h"

#include "kernels/simd/code_avx2.h"
#include "kernels/simd/decode_avx2.h"
#include "kernels/simd/store_avx2.h"
#include "kernels/simd/tile_avx2.h"

#include "kernels/body/element.h"
#include "kernels/body/scale.h"

#include "kernels/body/quant.h"

namespace sparsespan {

extern const QuantKernels avx2_quant_kernels;
const QuantKernels avx2_quant_kernels = kTable;

}  // namespace sparsespan
