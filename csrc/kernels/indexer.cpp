#include "kernels/indexer.h"

#include "kernels/dispatch.h"

namespace sparsespan {

extern const IndexerKernels generic_indexer_kernels;
extern const IndexerKernels avx2_indexer_kernels;
extern const IndexerKernels avx512_indexer_kernels;

const IndexerKernels& indexer_kernels() {
  return choose_kernels<IndexerKernels>({&generic_indexer_kernels, SPARSESPAN_AVX2(avx2_indexer_kernels),
                                         SPARSESPAN_AVX512(avx512_indexer_kernels), nullptr});
}

}  // namespace sparsespan
