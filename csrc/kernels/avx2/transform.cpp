#include "kernels/transform.h"

#include "kernels/simd/vec_avx2.h"

#include "kernels/simd/butterfly_avx2.h"
#include "kernels/simd/decode_avx2.h"
#include "kernels/simd/store_avx2.h"

#include "kernels/body/element.h"

#include "kernels/body/norm.h"
#include "kernels/body/rope.h"
#include "kernels/body/transform.h"

namespace sparsespan {

extern const TransformKernels avx2_transform_kernels;
const TransformKernels avx2_transform_kernels = {
    .hadamard = hadamard,
    .rope_half_split = rope_half_split,
    .rope_interleaved = rope_interleaved,
    .fence = fence,
    .rms_norm = rms_norm,
    .layer_norm = layer_norm,
};

}  // namespace sparsespan
