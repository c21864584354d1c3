#include "kernels/attention.h"

#include "kernels/simd/vec_avx2.h"

namespace {
// 16 registers: 12 sums hide the latency of two FMA units, and leave room for two loads and a broadcast.
constexpr int kScoreVecs = 2;
constexpr int kScoreKeys = 6;
constexpr int kValueCols = 6;
constexpr int kValueVecs = 2;
}  // namespace

#include "kernels/body/attention.h"
#include "kernels/body/attention_state.h"

namespace sparsespan {

extern const AttentionKernels avx2_attention_kernels;
const AttentionKernels avx2_attention_kernels = kTable;

}  // namespace sparsespan
