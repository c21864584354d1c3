#include "transform/norms.h"

#include <algorithm>
#include <cmath>

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

// Runs body(row index, float32 copy of the row) over all rows of [rows, n].
template <class Body>
void for_each_row(std::int64_t rows, std::int64_t n, int threads, const Body& body) {
  if (rows == 0 || n == 0) return;
  const Scratch<float> scratch(row_team_size(rows, n, threads) * round_up(n, 16));
  parallel_rows(rows, n, threads, [&](std::int64_t t, int slot) { body(t, scratch.data() + slot * round_up(n, 16)); });
}

template <class T>
void run(const RmsNormParams& p) {
  const auto x = p.x.as<const T, 2>();
  const auto residual = p.residual.as<const T, 2>();
  const auto out = p.out.as<T, 2>();
  const auto residual_out = p.residual_out.as<T, 2>();
  const std::int64_t n = x.shape[1];
  const auto w = widen(p.w);
  const auto& kernels = transform_kernels();
  for_each_row(x.shape[0], n, p.threads, [&](std::int64_t t, float* row) {
    row_to_float(x.row(t), row, n);
    if (p.residual) {
      const T* add = residual.row(t);
      for (std::int64_t i = 0; i < n; ++i) row[i] += to_float(add[i]);
      row_from_float(row, residual_out.row(t), n);
    }
    kernels.rms_normalise(row, n, p.eps);
    if (p.cast == NormCast::before) {
      row_from_float(row, out.row(t), n);
      row_to_float(out.row(t), row, n);
    }
    kernels.scale_shift(row, w.data(), nullptr, n);
    row_from_float(row, out.row(t), n);
  });
}

template <class T>
void run(const LayerNormParams& p) {
  const auto x = p.x.as<const T, 2>();
  const auto out = p.out.as<T, 2>();
  const std::int64_t n = x.shape[1];
  const auto w = widen(p.w);
  const auto b = widen(p.b);
  const auto& kernels = transform_kernels();
  for_each_row(x.shape[0], n, p.threads, [&](std::int64_t t, float* row) {
    row_to_float(x.row(t), row, n);
    kernels.layer_normalise(row, n, p.eps);
    kernels.scale_shift(row, w.data(), b.data(), n);
    row_from_float(row, out.row(t), n);
  });
}

template <class Params>
void validate_and_run(const Params& p) {
  validate(p);
  if (p.x.dtype == DType::bfloat16) {
    run<BFloat16>(p);
  } else {
    run<float>(p);
  }
}

}  // namespace

void rms_norm(const RmsNormParams& p) { validate_and_run(p); }

void layer_norm(const LayerNormParams& p) { validate_and_run(p); }

}  // namespace sparsespan
