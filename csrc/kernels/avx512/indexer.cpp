#include "kernels/indexer.h"

#include "kernels/simd/vec_avx512.h"

#include "kernels/simd/decode_avx512.h"

#include "kernels/body/indexer.h"

namespace sparsespan {

extern const IndexerKernels avx512_indexer_kernels;
const IndexerKernels avx512_indexer_kernels = kTable;

}  // namespace sparsespan
