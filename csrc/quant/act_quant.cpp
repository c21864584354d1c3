#include "quant/act_quant.h"

#include "core/row_blocks.h"
#include "quant/rows.h"

namespace sparsespan {

namespace {

constexpr std::string_view kOp = "act_quant";

void validate(const ActQuantParams& p) {
  require_dtype(kOp, "x", p.x, {DType::float32, DType::bfloat16});
  require_shape(kOp, "x", p.x, {kAny, kAny}, "[T, N]");
  require_inner_contiguous(kOp, "x", p.x);
  if (p.block_size < 1) refuse_value(kOp, "block_size", "is ", p.block_size, ", needs at least 1");
  const std::int64_t n = p.x.shape[1];
  if (n % p.block_size != 0) {
    refuse_value(kOp, "x", "has a last axis of ", n, ", needs a multiple of block_size ", p.block_size,
                 "; pad it with zeros");
  }
  require_output(kOp, "y", p.y, DType::float8_e4m3fn, {p.x.shape[0], n}, "[T, N]", {&p.x});
  require_output(kOp, "scale", p.scale, DType::float32, {p.x.shape[0], n / p.block_size}, "[T, N / block_size]",
                 {&p.x, &p.y});
  if (p.validate == Validate::full) require_finite(kOp, "x", p.x, Tensor{}, p.threads);
}

}  // namespace

void act_quant(const ActQuantParams& p) {
  validate(p);
  const std::int64_t rows = p.x.shape[0];
  const std::int64_t groups = p.scale.shape[1];
  if (rows == 0 || groups == 0) return;
  const auto y = p.y.as<std::uint8_t, 2>();
  const auto scale = p.scale.as<float, 2>();
  const bool bfloat16 = p.x.dtype == DType::bfloat16;
  const QuantKernels& kernels = quant_kernels();
  parallel_row_blocks(rows, p.x.shape[1], p.threads, [&](std::int64_t first, std::int64_t last, int) {
    kernels.encode_rows({.x = element_at(p.x, first, 0),
                         .bfloat16 = bfloat16,
                         .rule = p.rule,
                         .tile = p.block_size,
                         .n = p.x.shape[1],
                         .codes = y.row(first),
                         .scales = scale.row(first),
                         .rows = last - first,
                         .x_stride = p.x.strides[0] * size_of(p.x.dtype),
                         .codes_stride = y.strides[0],
                         .scales_stride = scale.strides[0] * static_cast<std::int64_t>(sizeof(float))});
  });
}

}  // namespace sparsespan
