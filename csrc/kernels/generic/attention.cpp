#include "kernels/attention.h"

#include "kernels/simd/vec_generic.h"

namespace {
// 16 registers. Measured on Zen 4, GCC 12, in GFLOP/s of 59: scores 2 x 4 41, 4 x 3 30 (spills), 3 x 3 40; values 3 x 4
// 40, 6 x 2 35, 3 x 3 39.
constexpr int kScoreVecs = 2;
constexpr int kScoreKeys = 4;
constexpr int kValueCols = 3;
constexpr int kValueVecs = 4;
}  // namespace

#include "kernels/body/attention.h"
#include "kernels/body/attention_state.h"

namespace sparsespan {

extern const AttentionKernels generic_attention_kernels;
const AttentionKernels generic_attention_kernels = kTable;

}  // namespace sparsespan
