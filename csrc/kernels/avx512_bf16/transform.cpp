#include "kernels/transform.h"

#include "kernels/simd/vec_avx512.h"

#include "kernels/simd/butterfly_avx512.h"
#include "kernels/simd/decode_avx512.h"
#include "kernels/simd/store_avx512.h"

#include "kernels/simd/pairs_bf16.h"

#include "kernels/body/element.h"

#include "kernels/body/norm.h"
#include "kernels/body/rope.h"
#include "kernels/body/transform.h"

#include "kernels/body/norm_pairs.h"
#include "kernels/body/transform_pairs.h"

namespace sparsespan {

extern const TransformKernels avx512_bf16_transform_kernels;
const TransformKernels avx512_bf16_transform_kernels = {
    .hadamard = hadamard_pairs,
    .rope_half_split = rope_half_split_pairs,
    .rope_interleaved = rope_interleaved_pairs,
    .fence = fence,
    .rms_norm = rms_norm_pairs,
    .layer_norm = layer_norm_pairs,
};

}  // namespace sparsespan
