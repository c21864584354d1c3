#include "kernels/attention.h"

#include "kernels/simd/vec_generic.h"

namespace {
// 16 registers: 12 sums, the broadcast, a product or two.
constexpr int kScoreVecs = 4;
constexpr int kScoreKeys = 3;
constexpr int kValueCols = 3;
constexpr int kValueVecs = 4;
}  // namespace

#include "kernels/body/attention.h"
#include "kernels/body/attention_state.h"

namespace sparsespan {

extern const AttentionKernels generic_attention_kernels;
const AttentionKernels generic_attention_kernels = kTable;

}  // namespace sparsespan
