#pragma once

// Include after kernels/body/element.h, inside one translation unit per ISA level.
//
// Row sums have one order at every level: element i is added to partial i % 16, in ascending i, and the partials
// merge in a fixed tree. Only the number of vectors that hold the sixteen partials differs.

#include <math.h>
#include <stdint.h>

namespace {

using sparsespan::NormRows;

constexpr int kPartials = 16;
constexpr int kPartialVectors = kPartials / Vec::kLanes;

struct Partials {
  Vec::Float sums[kPartialVectors];

  Partials() {
    for (auto& sum : sums) sum = Vec::zero();
  }
  // With `rest` holding what came behind the last whole sixteen.
  float merged(const float* rest, int64_t count) const {
    float partials[kPartials];
    for (int v = 0; v < kPartialVectors; ++v) Vec::store(partials + v * Vec::kLanes, sums[v]);
    for (int64_t i = 0; i < count; ++i) partials[i] += rest[i];
    for (int stride = kPartials / 2; stride > 0; stride /= 2) {
      for (int i = 0; i < stride; ++i) partials[i] += partials[i + stride];
    }
    return partials[0];
  }
};

// x (+ residual) to p.row; the sum of `term` over it.
template <class E, class Term>
float load_row(const NormRows& p, const Term& term) {
  const char* x = (const char*)p.x;
  const char* add = (const char*)p.residual;
  char* sum_out = (char*)p.residual_out;
  Partials partials;
  int64_t i = 0;
  for (; i + kPartials <= p.n; i += kPartials) {
    for (int v = 0; v < kPartialVectors; ++v) {
      const int64_t at = i + v * Vec::kLanes;
      Vec::Float value = E::load(x + at * E::kBytes);
      if (add != nullptr) {
        value = value + E::load(add + at * E::kBytes);
        E::template store<false>(sum_out + at * E::kBytes, value);
      }
      Vec::store(p.row + at, value);
      partials.sums[v] = partials.sums[v] + term(value);
    }
  }
  float rest[kPartials];
  const int64_t whole = i;
  for (; i < p.n; ++i) {
    float value = E::get(x + i * E::kBytes);
    if (add != nullptr) {
      value += E::get(add + i * E::kBytes);
      E::put(sum_out + i * E::kBytes, value);
    }
    p.row[i] = value;
    rest[i - whole] = term(value);
  }
  return partials.merged(rest, p.n - whole);
}

// Sum of (x - centre)^2 over p.row.
inline float sum_of_squares(const NormRows& p, float centre) {
  const Vec::Float centres = Vec::broadcast(centre);
  Partials partials;
  int64_t i = 0;
  for (; i + kPartials <= p.n; i += kPartials) {
    for (int v = 0; v < kPartialVectors; ++v) {
      const Vec::Float x = Vec::load(p.row + i + v * Vec::kLanes) - centres;
      partials.sums[v] = partials.sums[v] + x * x;
    }
  }
  float rest[kPartials];
  const int64_t whole = i;
  for (; i < p.n; ++i) rest[i - whole] = (p.row[i] - centre) * (p.row[i] - centre);
  return partials.merged(rest, p.n - whole);
}

// out = normalised * w (+ b), normalised rounded to the row's type first where `cast_before` says so.
template <class E, class Normalise>
void write_row(const NormRows& p, const Normalise& normalise) {
  char* out = (char*)p.out;
  int64_t i = 0;
  for (; i + Vec::kLanes <= p.n; i += Vec::kLanes) {
    Vec::Float value = normalise(Vec::load(p.row + i));
    if (p.cast_before) value = E::round(value);
    value = value * Vec::load(p.w + i);
    if (p.b != nullptr) value = value + Vec::load(p.b + i);
    E::template store<false>(out + i * E::kBytes, value);
  }
  for (; i < p.n; ++i) {
    float value = normalise(p.row[i]);
    if (p.cast_before) value = E::round(value);
    value = value * p.w[i];
    if (p.b != nullptr) value = value + p.b[i];
    E::put(out + i * E::kBytes, value);
  }
}

struct Itself {
  Vec::Float operator()(Vec::Float v) const { return v; }
  float operator()(float v) const { return v; }
};

struct Square {
  Vec::Float operator()(Vec::Float v) const { return v * v; }
  float operator()(float v) const { return v * v; }
};

// (x - centre) * inverse; x - 0 is x, the zeros with their signs included.
struct Centred {
  float centre;
  float inverse;
  Vec::Float operator()(Vec::Float v) const { return (v - Vec::broadcast(centre)) * Vec::broadcast(inverse); }
  float operator()(float v) const { return (v - centre) * inverse; }
};

template <class E>
void rms_norm_row(const NormRows& p) {
  const float mean = load_row<E>(p, Square{}) / static_cast<float>(p.n);
  write_row<E>(p, Centred{0.0F, 1.0F / sqrtf(mean + p.eps)});
}

// Two passes: the variance from centred values, so that a large mean cancels nothing.
template <class E>
void layer_norm_row(const NormRows& p) {
  const auto count = static_cast<float>(p.n);
  const float mean = load_row<E>(p, Itself{}) / count;
  const float inverse = 1.0F / sqrtf(sum_of_squares(p, mean) / count + p.eps);
  write_row<E>(p, Centred{mean, inverse});
}

template <class Kernel>
inline void each_norm_row(const NormRows& p, const Kernel& kernel) {
  const int64_t bytes = p.bfloat16 ? Bf16::kBytes : F32::kBytes;
  NormRows row = p;
  for (int64_t i = 0; i < p.rows; ++i) {
    kernel(row);
    row.x = (const char*)row.x + p.x_stride * bytes;
    row.out = (char*)row.out + p.out_stride * bytes;
    if (p.residual == nullptr) continue;
    row.residual = (const char*)row.residual + p.residual_stride * bytes;
    row.residual_out = (char*)row.residual_out + p.residual_out_stride * bytes;
  }
}

void rms_norm(const NormRows& p) noexcept {
  each_norm_row(p, [](const NormRows& row) { row.bfloat16 ? rms_norm_row<Bf16>(row) : rms_norm_row<F32>(row); });
}

void layer_norm(const NormRows& p) noexcept {
  each_norm_row(p, [](const NormRows& row) { row.bfloat16 ? layer_norm_row<Bf16>(row) : layer_norm_row<F32>(row); });
}

}  // namespace
