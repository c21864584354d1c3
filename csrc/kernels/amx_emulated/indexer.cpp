#include "kernels/indexer.h"

#include "kernels/simd/vec_avx512.h"

#include "kernels/simd/decode_avx512.h"

#include "kernels/simd/halves_avx512.h"

#include "kernels/simd/tiles_emulated.h"

#include "kernels/body/indexer_tiles.h"

namespace sparsespan {

extern const IndexerKernels amx_emulated_indexer_kernels;
const IndexerKernels amx_emulated_indexer_kernels = kTable;

}  // namespace sparsespan
