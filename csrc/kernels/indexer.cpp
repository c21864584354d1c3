#include "kernels/indexer.h"

#include "kernels/dispatch.h"

namespace sparsespan {

extern const IndexerKernels generic_indexer_kernels;
extern const IndexerKernels avx2_indexer_kernels;
extern const IndexerKernels avx512_indexer_kernels;
extern const IndexerKernels avx512_bf16_indexer_kernels;
extern const IndexerKernels amx_indexer_kernels;
extern const IndexerKernels amx_emulated_indexer_kernels;

const IndexerKernels& indexer_kernels(bool narrow) {
  std::array<const IndexerKernels*, kIsaCount> levels = {
      &generic_indexer_kernels, SPARSESPAN_AVX2(avx2_indexer_kernels), SPARSESPAN_AVX512(avx512_indexer_kernels)};
  if (narrow) {
    levels[3] = SPARSESPAN_AVX512_BF16(avx512_bf16_indexer_kernels);
    levels[4] = SPARSESPAN_AMX(amx_indexer_kernels, amx_emulated_indexer_kernels);
  }
  return choose_kernels(levels);
}

}  // namespace sparsespan
