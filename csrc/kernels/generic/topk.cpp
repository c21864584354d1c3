#include "kernels/topk.h"

#include "kernels/simd/vec_generic.h"

#include "kernels/simd/filter_generic.h"

#include "kernels/body/topk.h"

namespace sparsespan {

extern const TopkKernels generic_topk_kernels;
const TopkKernels generic_topk_kernels = kTable;

}  // namespace sparsespan
