#include "kernels/transform.h"

#include "kernels/simd/vec_generic.h"

#include "kernels/simd/butterfly_generic.h"
#include "kernels/simd/decode_generic.h"
#include "kernels/simd/store_generic.h"

#include "kernels/body/element.h"

#include "kernels/body/norm.h"
#include "kernels/body/rope.h"
#include "kernels/body/transform.h"

namespace sparsespan {

extern const TransformKernels generic_transform_kernels;
const TransformKernels generic_transform_kernels = {
    .hadamard = hadamard,
    .rope_half_split = rope_half_split,
    .rope_interleaved = rope_interleaved,
    .fence = fence,
    .rms_norm = rms_norm,
    .layer_norm = layer_norm,
};

}  // namespace sparsespan
