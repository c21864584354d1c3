#include "kernels/probe.h"

#include "kernels/simd/vec_generic.h"

#include "kernels/body/probe.h"

namespace sparsespan {

extern const ProbeKernels generic_probe_kernels;
const ProbeKernels generic_probe_kernels = {.multiply_add = probe_multiply_add,
                                            .flops_per_iteration = 2 * kProbeChains * Vec::kLanes};

}  // namespace sparsespan
