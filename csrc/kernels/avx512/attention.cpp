#include "kernels/attention.h"

#include "kernels/simd/vec_avx512.h"

namespace {
// 32 registers: 24 sums, two or three operands, the broadcast.
constexpr int kScoreVecs = 2;
constexpr int kScoreKeys = 12;
constexpr int kValueCols = 8;
constexpr int kValueVecs = 2;
}  // namespace

#include "kernels/body/attention.h"
#include "kernels/body/attention_state.h"

namespace sparsespan {

extern const AttentionKernels avx512_attention_kernels;
const AttentionKernels avx512_attention_kernels = kTable;

}  // namespace sparsespan
