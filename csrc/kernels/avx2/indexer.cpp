#include "kernels/indexer.h"

#include "kernels/simd/vec_avx2.h"

#include "kernels/simd/decode_avx2.h"

#include "kernels/body/indexer.h"

namespace sparsespan {

extern const IndexerKernels avx2_indexer_kernels;
const IndexerKernels avx2_indexer_kernels = kTable;

}  // namespace sparsespan
