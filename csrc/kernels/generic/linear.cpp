#include "kernels/linear.h"

#include "kernels/simd/vec_generic.h"

#include "kernels/simd/decode_generic.h"

#include "kernels/body/linear.h"

namespace sparsespan {

extern const LinearKernels generic_linear_kernels;
const LinearKernels generic_linear_kernels = {.lanes = Vec::kLanes,
                                              .tile_rows = kTileRows,
                                              .tile_columns = kTileColumns,
                                              .tile = tile,
                                              .tile_in_place = tile_in_place,
                                              .reduce = reduce};

}  // namespace sparsespan
