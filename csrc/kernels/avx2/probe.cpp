#include "kernels/probe.h"

#include "kernels/simd/vec_avx2.h"

#include "kernels/body/probe.h"

namespace sparsespan {

extern const ProbeKernels avx2_probe_kernels;
const ProbeKernels avx2_probe_kernels = {.multiply_add = probe_multiply_add,
                                         .flops_per_iteration = 2 * kProbeChains * Vec::kLanes};

}  // namespace sparsespan
