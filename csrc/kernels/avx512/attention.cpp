#include "kernels/attention.h"

#include "kernels/simd/vec_avx512.h"

namespace {
// 32 registers; 16 sums hide the latency of two FMA units. Measured on Zen 4, GCC 12, in GFLOP/s of 118: scores 2 x 8
// 117, 4 x 6 116, 2 x 12 112; values 6 x 4 113, 8 x 3 115 (does not divide 512), 12 x 2 109.
constexpr int kScoreVecs = 2;
constexpr int kScoreKeys = 8;
constexpr int kValueCols = 6;
constexpr int kValueVecs = 4;
}  // namespace

#include "kernels/body/attention.h"
#include "kernels/body/attention_state.h"

namespace sparsespan {

extern const AttentionKernels avx512_attention_kernels;
const AttentionKernels avx512_attention_kernels = kTable;

}  // namespace sparsespan
