#include "kernels/topk.h"

#include "kernels/simd/vec_avx512.h"

#include "kernels/simd/filter_avx512.h"

#include "kernels/body/topk.h"

namespace sparsespan {

extern const TopkKernels avx512_topk_kernels;
const TopkKernels avx512_topk_kernels = kTable;

}  // namespace sparsespan
