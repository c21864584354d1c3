#include "kernels/transform.h"

#include "kernels/simd/vec_generic.h"

#include "kernels/body/transform.h"

namespace sparsespan {

extern const TransformKernels generic_transform_kernels;
const TransformKernels generic_transform_kernels = {.hadamard = hadamard};

}  // namespace sparsespan
