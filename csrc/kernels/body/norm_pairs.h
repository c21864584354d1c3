#pragma once

// Norms of bfloat16, 32 elements at a time. Include after kernels/body/norm.h and kernels/simd/pairs_bf16.h; the same
// steps in the same order as there, so the same bits.
//
// A sum waits for its own additions and for memory, a row's last pass for neither: the sums of the rows that follow run
// beside it, an element of each in turn. Every pass widens the row anew, for as float32 it would leave the first cache.

#include <stdint.h>

namespace {

constexpr int64_t kNormStep = 32;
constexpr int64_t kNormAhead =
    2048;  // bytes; rows mostly lie one behind the other, and who looks first is the first sum

// Adds term(value) of each element of a row to its partial.
template <class Term>
struct SumStage {
  const char* x;
  Term term;
  Partials partials = {};

  void operator()(int64_t i) {
    __builtin_prefetch(x + i * Bf16::kBytes + kNormAhead);
    const Pair v = Pairs::neighbours(x + i * Bf16::kBytes);
    partials.sums[0] = partials.sums[0] + term(v.a);
    partials.sums[0] = partials.sums[0] + term(v.b);
  }
  float sum() const { return partials.merged(nullptr, 0); }
};

inline __m512i rounded_neighbours(Pair m) {
  return __builtin_expect(Pairs::subnormal(m) != 0, 0) ? Pairs::rounded_slowly(m) : Pairs::rounded(m);
}

// out = normalise(x) * w (+ b).
template <bool before, bool bias, class Normalise>
struct WriteStage {
  const char* x;
  char* out;
  const float* w;
  const float* b;
  Normalise normalise;

  void operator()(int64_t i) const {
    Pair v = Pairs::neighbours(x + i * Bf16::kBytes);
    v = {normalise(v.a), normalise(v.b)};
    if (before) v = Pairs::neighbours(rounded_neighbours(v));
    v = {v.a * Vec::load(w + i), v.b * Vec::load(w + i + 16)};
    if (bias) v = {v.a + Vec::load(b + i), v.b + Vec::load(b + i + 16)};
    Pairs::store<false>(out + i * Bf16::kBytes, rounded_neighbours(v));
  }
};

template <class... Stage>
inline void run_stages(int64_t n, Stage&... stages) {
  for (int64_t i = 0; i < n; i += kNormStep) (stages(i), ...);
}

struct Scaled {
  Vec::Float inverse;
  Vec::Float operator()(Vec::Float v) const { return v * inverse; }
};

struct SquareAbout {
  Vec::Float centre;
  Vec::Float operator()(Vec::Float v) const { return (v - centre) * (v - centre); }
};

struct ScaledAbout {
  Vec::Float centre;
  Vec::Float inverse;
  Vec::Float operator()(Vec::Float v) const { return (v - centre) * inverse; }
};

inline const char* x_at(const NormRows& p, int64_t row) { return (const char*)p.x + row * p.x_stride * Bf16::kBytes; }
inline char* out_at(const NormRows& p, int64_t row) { return (char*)p.out + row * p.out_stride * Bf16::kBytes; }
inline float inverse_root(const NormRows& p, float sum) { return 1.0F / sqrtf(sum / static_cast<float>(p.n) + p.eps); }

template <bool before>
void rms_norm_stages(const NormRows& p) {
  SumStage<Square> first = {x_at(p, 0), {}};
  run_stages(p.n, first);
  float sum = first.sum();
  for (int64_t row = 0; row < p.rows; ++row) {
    WriteStage<before, false, Scaled> write = {
        x_at(p, row), out_at(p, row), p.w, nullptr, {Vec::broadcast(inverse_root(p, sum))}};
    if (row + 1 == p.rows) return run_stages(p.n, write);
    SumStage<Square> next = {x_at(p, row + 1), {}};
    run_stages(p.n, write, next);
    sum = next.sum();
  }
}

// Row `row` is summed while the one before gets its squares about the mean and the one before that is written.
void layer_norm_stages(const NormRows& p) {
  float means[2] = {};  // of the last two rows that were summed, at places row % 2
  float squares = 0.0F;
  for (int64_t row = 0; row < p.rows + 2; ++row) {
    const bool sums = row < p.rows;
    const bool spreads = row >= 1 && row <= p.rows;
    const Vec::Float centre = Vec::broadcast(means[(row + 1) % 2]);
    SumStage<Itself> sum = {x_at(p, sums ? row : 0), {}};
    SumStage<SquareAbout> spread = {x_at(p, spreads ? row - 1 : 0), {centre}};
    const int64_t done = row >= 2 ? row - 2 : 0;
    WriteStage<false, true, ScaledAbout> write = {
        x_at(p, done),
        out_at(p, done),
        p.w,
        p.b,
        {Vec::broadcast(means[row % 2]), Vec::broadcast(inverse_root(p, squares))}};
    if (sums && spreads && row >= 2) {
      run_stages(p.n, write, spread, sum);
    } else {
      if (row >= 2) run_stages(p.n, write);
      if (spreads) run_stages(p.n, spread);
      if (sums) run_stages(p.n, sum);
    }
    means[row % 2] = sum.sum() / static_cast<float>(p.n);
    squares = spread.sum();
  }
}

inline bool in_stages(const NormRows& p) {
  return p.bfloat16 && p.residual == nullptr && p.rows > 0 && p.n % kNormStep == 0;
}

void rms_norm_pairs(const NormRows& p) noexcept {
  if (!in_stages(p)) return rms_norm(p);
  p.cast_before ? rms_norm_stages<true>(p) : rms_norm_stages<false>(p);
}

void layer_norm_pairs(const NormRows& p) noexcept { in_stages(p) ? layer_norm_stages(p) : layer_norm(p); }

}  // namespace
