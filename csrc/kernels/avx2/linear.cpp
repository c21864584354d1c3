#include "kernels/linear.h"

#include "kernels/simd/vec_avx2.h"

#include "kernels/simd/decode_avx2.h"

#include "kernels/body/linear.h"

namespace sparsespan {

extern const LinearKernels avx2_linear_kernels;
const LinearKernels avx2_linear_kernels = {.lanes = Vec::kLanes,
                                           .tile_rows = kTileRows,
                                           .tile_columns = kTileColumns,
                                           .tile = tile,
                                           .tile_in_place = tile_in_place,
                                           .reduce = reduce};

}  // namespace sparsespan
