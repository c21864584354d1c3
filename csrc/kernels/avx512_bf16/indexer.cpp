#include "kernels/indexer.h"

#include "kernels/simd/vec_avx512.h"

#include "kernels/simd/decode_avx512.h"

#include "kernels/simd/halves_avx512.h"

#include "kernels/body/indexer_bf16.h"

namespace sparsespan {

extern const IndexerKernels avx512_bf16_indexer_kernels;
const IndexerKernels avx512_bf16_indexer_kernels = kTable;

}  // namespace sparsespan
