#include "transform/norms.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "core/convert.h"
#include "core/parallel.h"
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

// Runs kernel(NormRow) over all rows; fill(NormRow&, t) sets what belongs to the op.
template <class Kernel, class Fill>
void for_each_row(const Tensor& x, const Tensor& out, int threads, Kernel kernel, const Fill& fill) {
  const std::int64_t rows = x.shape[0];
  const std::int64_t n = x.shape[1];
  if (rows == 0 || n == 0) return;
  const std::int64_t room = round_up(n, 16);
  const Scratch<float> scratch(row_team_size(rows, n, threads) * room);
  parallel_rows(rows, n, threads, [&](std::int64_t t, int slot) {
    NormRow row = {};
    row.x = row_at(x, t);
    row.out = row_at(out, t);
    row.row = scratch.data() + slot * room;
    row.n = n;
    row.bfloat16 = x.dtype == DType::bfloat16;
    fill(row, t);
    kernel(row);
  });
}

}  // namespace

void rms_norm(const RmsNormParams& p) {
  validate(p);
  const auto w = widen(p.w);
  for_each_row(p.x, p.out, p.threads, transform_kernels().rms_norm, [&](NormRow& row, std::int64_t t) {
    row.residual = row_at(p.residual, t);
    row.residual_out = row_at(p.residual_out, t);
    row.w = w.data();
    row.eps = p.eps;
    row.cast_before = p.cast == NormCast::before;
  });
}

void layer_norm(const LayerNormParams& p) {
  validate(p);
  const auto w = widen(p.w);
  const auto b = widen(p.b);
  for_each_row(p.x, p.out, p.threads, transform_kernels().layer_norm, [&](NormRow& row, std::int64_t) {
    row.w = w.data();
    row.b = b.data();
    row.eps = p.eps;
  });
}

}  // namespace sparsespan
