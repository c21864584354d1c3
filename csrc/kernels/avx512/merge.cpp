#include "kernels/merge.h"

#include "kernels/simd/vec_avx512.h"

#include "kernels/simd/decode_avx512.h"
#include "kernels/simd/store_avx512.h"

#include "kernels/body/element.h"

#include "kernels/body/merge.h"

namespace sparsespan {

extern const MergeKernels avx512_merge_kernels;
const MergeKernels avx512_merge_kernels = {.merge = merge, .fence = fence};

}  // namespace sparsespan
