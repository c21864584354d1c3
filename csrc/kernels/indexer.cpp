#include "kernels/indexer.h"

#include "kernels/dispatch.h"

namespace sparsespan {

extern const IndexerKernels generic_indexer_kernels;
#ifdef SPARSESPAN_HAVE_AVX512
extern const IndexerKernels avx512_indexer_kernels;
#endif

const IndexerKernels& indexer_kernels() {
#ifdef SPARSESPAN_HAVE_AVX512
  const IndexerKernels* avx512 = &avx512_indexer_kernels;
#else
  const IndexerKernels* avx512 = nullptr;
#endif
  return choose_kernels<IndexerKernels>({&generic_indexer_kernels, nullptr, avx512, nullptr});
}

}  // namespace sparsespan
