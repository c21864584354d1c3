#include "kernels/topk.h"

#include "kernels/simd/vec_avx2.h"

#include "kernels/simd/filter_avx2.h"

#include "kernels/body/topk.h"

namespace sparsespan {

extern const TopkKernels avx2_topk_kernels;
const TopkKernels avx2_topk_kernels = kTable;

}  // namespace sparsespan
