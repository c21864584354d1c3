#include "kernels/quant.h"

#include "kernels/simd/vec_generic.h"

#include "kernels/simd/code_generic.h"
#include "kernels/simd/decode_generic.h"
#include "kernels/simd/store_generic.h"
#include "kernels/simd/tile_generic.h"

#include "kernels/body/element.h"
#include "kernels/body/scale.h"

#include "kernels/body/quant.h"

namespace sparsespan {

extern const QuantKernels generic_quant_kernels;
const QuantKernels generic_quant_kernels = kTable;

}  // namespace sparsespan
