#include <algorithm>
#include <cmath>

#include "core/memory.h"
#include "core/parallel.h"
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

}  // namespace

void weight_dequant(const WeightDequantParams& p) {
  validate(p);
  const auto w = p.w.as<const std::uint8_t, 2>();
  const std::int64_t rows = w.shape[0];
  const std::int64_t n = w.shape[1];
  const bool bfloat16 = p.out.dtype == DType::bfloat16;
  const int element = size_of(p.out.dtype);
  const bool stream = outgrows_caches(rows * n * element);
  const QuantKernels& kernels = quant_kernels();
  parallel_rows(rows, n, p.threads, [&](std::int64_t i, int) {
    auto* out = static_cast<std::byte*>(p.out.data) + i * p.out.strides[0] * element;
    for (std::int64_t j = 0, count = 0; j < n; j += count) {  // to the end of the block or of the row
      count = std::min(p.block - j % p.block, n - j);
      kernels.decode_e4m3(w.row(i) + j, kE4M3Table.data(), scale_at(p.scale, i / p.block, j / p.block),
                          out + j * element, bfloat16, stream, count);
    }
    if (stream) kernels.fence();
  });
}

}  // namespace sparsespan
