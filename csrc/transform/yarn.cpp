#include "transform/yarn.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/parallel.h"
#include "core/scratch.h"

namespace sparsespan {

namespace {

constexpr std::int64_t kRowsPerTask = 64;

double magnitude(double factor, double mscale) { return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0; }

void require_at_least(std::string_view op, std::string_view argument, double value, double least) {
  if (!(value >= least) || !std::isfinite(value)) {
    refuse_value(op, argument, "is ", value, ", needs a finite number >= ", least);
  }
}

// The dim whose wave turns `rotations` times within the original context.
double correction_dim(const YarnParams& p, double rotations) {
  const double turns = static_cast<double>(p.original_max_position) / (rotations * 2.0 * std::numbers::pi);
  return static_cast<double>(p.dim) * std::log(turns) / (2.0 * std::log(p.base));
}

// Every step rounds to Real. With float these are the bits of the official expression in float32, whose power is
// taken as correctly rounded (float64, then one rounding).
template <class Real>
void fill_frequencies(const YarnParams& p, Real* out) {
  const std::int64_t half = p.dim / 2;
  const double low = std::max(std::floor(correction_dim(p, p.beta_fast)), 0.0);
  double high = std::min(std::ceil(correction_dim(p, p.beta_slow)), static_cast<double>(p.dim - 1));
  if (low == high) high += 0.001;  // no ramp of width zero
  for (std::int64_t i = 0; i < half; ++i) {
    const Real exponent = static_cast<Real>(2 * i) / static_cast<Real>(p.dim);
    const Real plain = Real{1} / static_cast<Real>(std::pow(p.base, static_cast<double>(exponent)));
    if (p.factor == 1.0) {
      out[i] = plain;
      continue;
    }
    const Real ramp = (static_cast<Real>(i) - static_cast<Real>(low)) / static_cast<Real>(high - low);
    const Real keep = Real{1} - std::min(std::max(ramp, Real{0}), Real{1});
    out[i] = plain / static_cast<Real>(p.factor) * (Real{1} - keep) + plain * keep;
  }
}

template <class Real>
void fill_table(const YarnParams& p) {
  const std::int64_t half = p.dim / 2;
  const Scratch<Real> frequencies(half);
  fill_frequencies(p, frequencies.data());
  const double amplitude = magnitude(p.factor, p.mscale) / magnitude(p.factor, p.mscale_all_dim);
  const auto out = p.out.as<float, 2>();
  parallel_for(ceil_div(p.max_positions, kRowsPerTask), p.threads, [&](std::int64_t task, int) {
    const std::int64_t last = std::min(p.max_positions, (task + 1) * kRowsPerTask);
    for (std::int64_t position = task * kRowsPerTask; position < last; ++position) {
      float* row = out.row(position);
      for (std::int64_t i = 0; i < half; ++i) {
        const Real angle = static_cast<Real>(position) * frequencies.data()[i];
        row[i] = static_cast<float>(std::cos(static_cast<double>(angle)) * amplitude);
        row[half + i] = static_cast<float>(std::sin(static_cast<double>(angle)) * amplitude);
      }
    }
  });
}

}  // namespace

void require_yarn(std::string_view op, const YarnParams& p) {
  if (p.max_positions < 0) refuse_value(op, "max_positions", "is ", p.max_positions, ", needs >= 0");
  if (p.dim < 2 || p.dim % 2 != 0)
    refuse_value(op, "dim", "is ", p.dim, ", needs an even number >= 2: rope turns pairs");
  checked_product(op, "max_positions * dim * 4 bytes",
                  checked_product(op, "max_positions * dim", p.max_positions, p.dim), 4);
  if (!(p.base > 1.0) || !std::isfinite(p.base)) refuse_value(op, "base", "is ", p.base, ", needs a finite number > 1");
  require_at_least(op, "factor", p.factor, 1.0);
  if (p.original_max_position < 1) {
    refuse_value(op, "original_max_position", "is ", p.original_max_position, ", needs >= 1");
  }
  if (!(p.beta_slow > 0.0)) refuse_value(op, "beta_slow", "is ", p.beta_slow, ", needs a number > 0");
  require_at_least(op, "beta_fast", p.beta_fast, p.beta_slow);
  require_at_least(op, "mscale", p.mscale, 0.0);
  require_at_least(op, "mscale_all_dim", p.mscale_all_dim, 0.0);
}

void yarn_frequencies(const YarnParams& p) {
  constexpr std::string_view op = "yarn_frequencies";
  require_yarn(op, p);
  require_output(op, "out", p.out, p.exact ? DType::float64 : DType::float32, {p.dim / 2}, "[dim / 2]", {});
  if (p.exact) {
    fill_frequencies(p, p.out.as<double, 1>().data);
  } else {
    fill_frequencies(p, p.out.as<float, 1>().data);
  }
}

void yarn_cos_sin(const YarnParams& p) {
  constexpr std::string_view op = "yarn_cos_sin";
  require_yarn(op, p);
  require_output(op, "out", p.out, DType::float32, {p.max_positions, p.dim}, "[max_positions, dim]", {});
  if (p.exact) {
    fill_table<double>(p);
  } else {
    fill_table<float>(p);
  }
}

double yarn_softmax_scale(std::int64_t head_dim, double factor, double mscale_all_dim) {
  constexpr std::string_view op = "yarn_softmax_scale";
  if (head_dim < 1) refuse_value(op, "head_dim", "is ", head_dim, ", needs >= 1");
  require_at_least(op, "factor", factor, 1.0);
  require_at_least(op, "mscale_all_dim", mscale_all_dim, 0.0);
  const double m = magnitude(factor, mscale_all_dim);
  return m * m / std::sqrt(static_cast<double>(head_dim));
}

}  // namespace sparsespan
