#pragma once

// Inner loops of csrc/attention. noexcept, single-threaded, fixed order of arithmetic.
//
// A "column" is one query vector: one head of one row. Columns lie along the SIMD lanes for scores and softmax, and no
// arithmetic ever crosses from one column to another, so a column's bits do not depend on its neighbours.

#include <cstdint>

#include "kernels/scope.h"

namespace sparsespan {

// A block of n keys against a set of columns. "Padded" columns are rounded up to the table's `panel`.
struct AttendBlock {
  const float* q;       // [ceil(cols / panel)][dim][panel]: transposed queries, zero beyond cols
  const float* k;       // [n][k_stride], dim of them used
  const float* v;       // [n][v_stride], readable up to d_v rounded up to 16
  const float* limits;  // [padded cols]: column c sees keys [0, limits[c]), limits[c] <= n; null: all n
  // [n], cols <= 64: column c sees key j when bit c of seen[j] is set; null: all keys. Not with limits. Values of keys
  // that some column does not see have to be finite: they are multiplied by 0.
  const std::uint64_t* seen = nullptr;
  std::int64_t cols;
  std::int64_t dim;
  std::int64_t d_v;
  std::int64_t n;
  std::int64_t k_stride;
  std::int64_t v_stride;
  float sm_scale;
  float* s;  // scratch [n][padded cols]
  float* m;  // [padded cols] out: largest score
  float* l;  // [padded cols] out: sum of exp(score - m)
  float* o;  // [cols][o_stride] out: sum of exp(score - m) * v
  std::int64_t o_stride;
};

// Unnormalised softmax states of the same columns: (m, l, o) as in AttendBlock.
struct StatePair {
  float* m;
  float* l;
  float* o;
  const float* m_other;
  const float* l_other;
  const float* o_other;
  std::int64_t cols;
  std::int64_t padded_cols;
  std::int64_t d_v;
  std::int64_t o_stride;
};

struct AttentionKernels {
  int panel;  // columns per panel of transposed queries
  // The state of one block, from nothing. Column c of key j: score = (sum over d, ascending) * sm_scale; sums over keys
  // ascending. A key at or past a column's limit contributes nothing and its value row is not touched.
  void (*attend)(const AttendBlock&) noexcept;
  // state := state merged with other. An empty side (m = -inf) leaves the other side's bits alone.
  void (*merge)(const StatePair&) noexcept;
  // a := a * weight_a + b * weight_b; a weight of 0 contributes exactly 0, whatever it would have multiplied.
  void (*mix)(float* a, float weight_a, const float* b, float weight_b, std::int64_t n) noexcept;
  // In place, <= 2 ulp for x <= 0; exactly 0 below ln(2^-126), NaN stays NaN. For x in (0, 88] as good, above
  // undefined.
  void (*exp)(float* x, std::int64_t n) noexcept;
  // Rows of a KV array to float32.
  void (*load_bf16)(const std::uint16_t* in, float* out, std::int64_t n) noexcept;
  // True when none of them is infinite or NaN.
  bool (*finite_bf16)(const std::uint16_t* x, std::int64_t n) noexcept;
  bool (*finite_f32)(const float* x, std::int64_t n) noexcept;
  // n e4m3 codes * scale, rounded to bfloat16 (nearest even), as float32.
  void (*load_fp8)(const std::uint8_t* in, float scale, float* out, std::int64_t n) noexcept;
};

const AttentionKernels& attention_kernels();

// The same from products of bfloat16, for queries, keys and values that are bfloat16 anyway. The weights exp(score - m)
// are rounded to bfloat16 before they multiply values; l sums them unrounded. Columns come in groups of 64 at most,
// keys in blocks of 256.
struct NarrowBlock {
  const std::uint16_t* q;  // pack_queries of 16 columns each
  const std::uint16_t* k;  // [n rounded up to 32][k_stride], zero beyond the dimensions and beyond n
  const std::uint16_t* v;  // pack_values of the same n
  std::int64_t k_stride;   // a multiple of 32
  std::int64_t cols;
  std::int64_t d_v;
  std::int64_t n;
  const std::uint64_t* seen = nullptr;  // [n], as in AttendBlock
  float sm_scale;
  float* s;          // scratch [256][64]
  std::uint16_t* p;  // scratch [64][256]
  float* m;          // [cols] out, as in AttendBlock
  float* l;
  float* o;  // [cols][o_stride] out
  std::int64_t o_stride;
  // Rows that another block will need: brought into the L2 cache meanwhile, evenly over the work. They are not read.
  const void* const* ahead = nullptr;
  std::int64_t ahead_rows = 0;
  std::int64_t ahead_bytes = 0;  // of each row
};

struct NarrowAttentionKernels {
  // rows: [16][stride], zero beyond the dimensions. out: 16 * stride values.
  void (*pack_queries)(const std::uint16_t* rows, std::int64_t stride, std::uint16_t* out) noexcept;
  // k (or v): rows as in NarrowBlock; keys from n on count as zero. out: 256 values for each of d_v rounded up to 16.
  void (*pack_values)(const std::uint16_t* k, std::int64_t stride, std::int64_t n, std::int64_t d_v,
                      std::uint16_t* out) noexcept;
  // n e4m3 codes * scale, rounded to bfloat16 (nearest even); n a multiple of 16.
  void (*decode_fp8)(const std::uint8_t* in, float scale, std::uint16_t* out, std::int64_t n) noexcept;
  void (*attend)(const NarrowBlock&) noexcept;
  // Keys that are multiplied together, a power of two. Leaving out a unit that no column sees changes no bit.
  int unit;
  TileSwitch tiles = {};  // to be held on (KernelScope) around attend
};

// Null at levels without such products.
const NarrowAttentionKernels* narrow_attention_kernels();

}  // namespace sparsespan
