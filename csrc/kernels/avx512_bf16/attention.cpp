#include "kernels/attention.h"

#include "kernels/simd/vec_avx512.h"

#include "kernels/simd/decode_avx512.h"

#include "kernels/simd/halves_avx512.h"

#include "kernels/body/attention_narrow_layout.h"

#include "kernels/body/attention_bf16.h"

#include "kernels/body/attention_narrow.h"

namespace sparsespan {

extern const NarrowAttentionKernels avx512_bf16_attention_kernels;
const NarrowAttentionKernels avx512_bf16_attention_kernels = kTable;

}  // namespace sparsespan
