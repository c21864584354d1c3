#include "transform/norms.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "core/convert.h"
#include "core/row_blocks.h"
#include "core/scratch.h"
#include "kernels/transform.h"
#include "transform/in_place.h"

namespace sparsespan {

namespace {

void require_rows(std::string_view op, const Tensor& x) {
  require_dtype(op, "x", x, {DType::float32, DType::bfloat16});
  require_shape(op, "x", x, {kAny, kAny}, "[T, n]");
  require_inner_contiguous(op, "x", x);
}

void require_weight(std::string_view op, std::string_view argument, const Tensor& w, std::int64_t n) {
  require_dtype(op, argument, w, {DType::float32, DType::bfloat16});
  require_shape(op, argument, w, {n}, "[n], n the last axis of x");
  require_inner_contiguous(op, argument, w);
}

void require_eps(std::string_view op, float eps) {
  if (!(eps >= 0.0F) || std::isinf(eps)) refuse_value(op, "eps", "is ", eps, ", needs a finite number >= 0");
}

std::string_view name_of_op(const RmsNormParams& p) { return p.residual ? "add_rms_norm" : "rms_norm"; }

void validate(const RmsNormParams& p) {
  const auto op = name_of_op(p);
  require_rows(op, p.x);
  const std::int64_t n = p.x.shape[1];
  require_weight(op, "w", p.w, n);
  require_eps(op, p.eps);
  require_output(op, "out", p.out, p.x.dtype, {p.x.shape[0], n}, "[T, n]",
                 {unless_in_place(p.x, p.out), &p.residual, &p.w});
  if (!p.residual) return;
  require_dtype(op, "residual", p.residual, {p.x.dtype});
  require_shape(op, "residual", p.residual, {p.x.shape[0], n}, "[T, n]");
  require_inner_contiguous(op, "residual", p.residual);
  require_output(op, "residual_out", p.residual_out, p.x.dtype, {p.x.shape[0], n}, "[T, n]",
                 {unless_in_place(p.residual, p.residual_out), &p.x, &p.w, &p.out});
}

void validate(const LayerNormParams& p) {
  constexpr std::string_view op = "layer_norm";
  require_rows(op, p.x);
  const std::int64_t n = p.x.shape[1];
  require_weight(op, "w", p.w, n);
  require_weight(op, "b", p.b, n);
  require_eps(op, p.eps);
  require_output(op, "out", p.out, p.x.dtype, {p.x.shape[0], n}, "[T, n]", {unless_in_place(p.x, p.out), &p.w, &p.b});
}

// A weight in float32: converted once, before any thread starts.
Scratch<float> widen(const Tensor& w) {
  const std::int64_t n = w.shape[0];
  Scratch<float> wide(n);
  if (w.dtype == DType::bfloat16) {
    row_to_float(static_cast<const BFloat16*>(w.data), wide.data(), n);
  } else {
    row_to_float(static_cast<const float*>(w.data), wide.data(), n);
  }
  return wide;
}

std::byte* row_at(const Tensor& x, std::int64_t t) {
  return x ? static_cast<std::byte*>(x.data) + t * x.strides[0] * size_of(x.dtype) : nullptr;
}

// Rows in blocks, each block to the kernel; fill(NormRows&, first row) sets what belongs to the op.
template <class Kernel, class Fill>
void for_each_block(const Tensor& x, const Tensor& out, int threads, Kernel kernel, const Fill& fill) {
  const std::int64_t rows = x.shape[0];
  const std::int64_t n = x.shape[1];
  if (rows == 0 || n == 0) return;
  const std::int64_t room = round_up(n, 16);
  const Scratch<float> scratch(block_team_size(rows, n, threads) * room);
  parallel_row_blocks(rows, n, threads, [&](std::int64_t first, std::int64_t last, int slot) {
    NormRows block = {};
    block.x = row_at(x, first);
    block.out = row_at(out, first);
    block.x_stride = x.strides[0];
    block.out_stride = out.strides[0];
    block.row = scratch.data() + slot * room;
    block.rows = last - first;
    block.n = n;
    block.bfloat16 = x.dtype == DType::bfloat16;
    fill(block, first);
    kernel(block);
  });
}

}  // namespace

void rms_norm(const RmsNormParams& p) {
  validate(p);
  const auto w = widen(p.w);
  for_each_block(p.x, p.out, p.threads, transform_kernels().rms_norm, [&](NormRows& rows, std::int64_t first) {
    rows.residual = row_at(p.residual, first);
    rows.residual_out = row_at(p.residual_out, first);
    rows.residual_stride = p.residual.strides[0];
    rows.residual_out_stride = p.residual_out.strides[0];
    rows.w = w.data();
    rows.eps = p.eps;
    rows.cast_before = p.cast == NormCast::before;
  });
}

void layer_norm(const LayerNormParams& p) {
  validate(p);
  const auto w = widen(p.w);
  const auto b = widen(p.b);
  for_each_block(p.x, p.out, p.threads, transform_kernels().layer_norm, [&](NormRows& rows, std::int64_t) {
    rows.w = w.data();
    rows.b = b.data();
    rows.eps = p.eps;
  });
}

}  // namespace sparsespan
