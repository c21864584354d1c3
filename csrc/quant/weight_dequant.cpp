#include <algorithm>
#include <cmath>

#include "core/memory.h"
#include "core/row_blocks.h"
#include "core/scratch.h"
#include "kernels/quant.h"
#include "quant/act_quant.h"
#include "quant/rows.h"

namespace sparsespan {

namespace {

constexpr std::string_view kOp = "weight_dequant";

float scale_at(const Tensor& scale, std::int64_t i, std::int64_t j) {
  const std::int64_t at = i * scale.strides[0] + j * scale.strides[1];
  if (scale.dtype == DType::float32) return static_cast<const float*>(scale.data)[at];
  return to_float(static_cast<const Float8E8M0*>(scale.data)[at]);
}

void require_scales(const Tensor& scale) {
  for (std::int64_t i = 0; i < scale.shape[0]; ++i) {
    for (std::int64_t j = 0; j < scale.shape[1]; ++j) {
      const float s = scale_at(scale, i, j);
      if (std::isfinite(s) && s >= 0.0F) continue;
      refuse_value(kOp, "scale_inv", "is ", s, " in row ", i, ", column ", j, ", needs finite scales >= 0");
    }
  }
}

void validate(const WeightDequantParams& p) {
  require_dtype(kOp, "w", p.w, {DType::float8_e4m3fn});
  require_shape(kOp, "w", p.w, {kAny, kAny}, "[M, N]");
  require_inner_contiguous(kOp, "w", p.w);
  if (p.block < 1) refuse_value(kOp, "block", "is ", p.block, ", needs at least 1");
  require_dtype(kOp, "scale_inv", p.scale, {DType::float32, DType::float8_e8m0fnu});
  const std::int64_t m = p.w.shape[0];
  const std::int64_t n = p.w.shape[1];
  const auto blocks = [&](std::int64_t extent) { return extent / p.block + (extent % p.block != 0 ? 1 : 0); };
  require_shape(kOp, "scale_inv", p.scale, {blocks(m), blocks(n)}, "[ceil(M / block), ceil(N / block)]");
  require_dtype(kOp, "out", p.out, {DType::bfloat16, DType::float32});
  require_output(kOp, "out", p.out, p.out.dtype, {m, n}, "[M, N]", {&p.w, &p.scale});
  if (p.validate == Validate::full) require_scales(p.scale);
}

constexpr std::int64_t kPiece = 2048;     // elements of a row that are decoded at a time
constexpr std::int64_t kScales = kPiece;  // of a piece, at most: blocks may be of one element

// Elements [j, j + count) of row i, whole blocks or a part of one.
void decode_piece(const WeightDequantParams& p, const QuantKernels& kernels, std::int64_t i, std::int64_t j,
                  std::int64_t count, void* out) {
  float scales[kScales];
  const std::int64_t first = j / p.block;
  const std::int64_t blocks = ceil_div(count, p.block);
  for (std::int64_t b = 0; b < blocks; ++b) scales[b] = scale_at(p.scale, i / p.block, first + b);
  kernels.decode_rows({.codes = static_cast<const std::uint8_t*>(p.w.data) + i * p.w.strides[0] + j,
                       .table = kE4M3Table.data(),
                       .scales = scales,
                       .tile = p.block,
                       .n = count,
                       .out = out,
                       .bfloat16 = p.out.dtype == DType::bfloat16});
}

// From column j on: as many whole blocks as a piece holds, or what a piece holds of one.
std::int64_t piece_at(std::int64_t j, std::int64_t n, std::int64_t block) {
  const std::int64_t most = block <= kPiece ? kPiece / block * block : std::min(kPiece, block - j % block);
  return std::min(most, n - j);
}

}  // namespace

void weight_dequant(const WeightDequantParams& p) {
  validate(p);
  const std::int64_t rows = p.w.shape[0];
  const std::int64_t n = p.w.shape[1];
  const int element = size_of(p.out.dtype);
  const bool stream = outgrows_caches(rows * n * element);
  const QuantKernels& kernels = quant_kernels();
  parallel_row_blocks(rows, n, p.threads, [&](std::int64_t begin, std::int64_t end, int) {
    alignas(64) std::byte stage[kPiece * sizeof(float)];
    for (std::int64_t i = begin; i < end; ++i) {
      auto* out = static_cast<std::byte*>(p.out.data) + i * p.out.strides[0] * element;
      for (std::int64_t j = 0, count = 0; j < n; j += count) {
        count = piece_at(j, n, p.block);
        decode_piece(p, kernels, i, j, count, stream ? stage : out + j * element);
        if (stream) kernels.copy_out(stage, out + j * element, count * element);
      }
    }
    if (stream) kernels.fence();
  });
}

}  // namespace sparsespan
