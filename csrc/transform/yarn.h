#pragma once

// Rotary frequencies, plain and stretched by YaRN (arXiv 2309.00071), their cos | sin table and the softmax scale
// that goes with them.

#include <string_view>

#include "core/tensor.h"

namespace sparsespan {

struct YarnParams {
  std::int64_t max_positions = 0;  // rows of the table
  std::int64_t dim = 64;           // rope dims, even
  double base = 10000.0;
  double factor = 1.0;  // 1: plain rope, the fields below do nothing
  std::int64_t original_max_position = 4096;
  double beta_fast = 32.0;
  double beta_slow = 1.0;
  double mscale = 1.0;  // cos and sin are multiplied by m(mscale) / m(mscale_all_dim), m(s) = 0.1 s ln(factor) + 1
  double mscale_all_dim = 1.0;
  bool exact = false;  // float64 throughout; else the official float32 steps
  Tensor out;          // frequencies: [dim / 2] float32 (float64 if exact); table: [max_positions, dim] float32
  int threads = 0;
};

// Refuses bad scalars, so that a caller may size `out` from the rest.
void require_yarn(std::string_view op, const YarnParams& params);

void yarn_frequencies(const YarnParams& params);
void yarn_cos_sin(const YarnParams& params);
// head_dim^-0.5 * m(mscale_all_dim)^2
double yarn_softmax_scale(std::int64_t head_dim, double factor, double mscale_all_dim);

}  // namespace sparsespan
