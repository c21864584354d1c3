#include "kernels/quant.h"

#include "kernels/body/quant.h"

namespace sparsespan {

extern const QuantKernels generic_quant_kernels;
const QuantKernels generic_quant_kernels = {
    .amax_bits = amax_bits, .encode_e4m3 = encode_e4m3, .decode_e4m3 = decode_e4m3};

}  // namespace sparsespan
