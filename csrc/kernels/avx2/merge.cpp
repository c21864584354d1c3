#include "kernels/merge.h"

#include "kernels/simd/vec_avx2.h"

#include "kernels/simd/decode_avx2.h"
#include "kernels/simd/store_avx2.h"

#include "kernels/body/element.h"

#include "kernels/body/merge.h"

namespace sparsespan {

extern const MergeKernels avx2_merge_kernels;
const MergeKernels avx2_merge_kernels = {.merge = merge, .fence = fence};

}  // namespace sparsespan
