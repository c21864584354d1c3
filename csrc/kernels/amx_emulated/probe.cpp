#include "kernels/probe.h"

#include "kernels/simd/tiles_emulated.h"

#include "kernels/body/probe_tiles.h"

namespace sparsespan {

extern const ProbeKernels amx_emulated_probe_kernels;
const ProbeKernels amx_emulated_probe_kernels = {.multiply_add = probe_tiles, .flops_per_iteration = kProbeTilesFlops};

}  // namespace sparsespan
