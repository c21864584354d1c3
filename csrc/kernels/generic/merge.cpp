#include "kernels/merge.h"

#include "kernels/simd/vec_generic.h"

#include "kernels/simd/decode_generic.h"
#include "kernels/simd/store_generic.h"

#include "kernels/body/element.h"

#include "kernels/body/merge.h"

namespace sparsespan {

extern const MergeKernels generic_merge_kernels;
const MergeKernels generic_merge_kernels = {.merge = merge, .fence = fence};

}  // namespace sparsespan
