#include "kernels/indexer.h"

#include "kernels/simd/vec_generic.h"

#include "kernels/simd/decode_generic.h"

#include "kernels/body/indexer.h"

namespace sparsespan {

extern const IndexerKernels generic_indexer_kernels;
const IndexerKernels generic_indexer_kernels = kTable;

}  // namespace sparsespan
