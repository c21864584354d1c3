#include "transform/hadamard.h"

#include <bit>

#include "core/convert.h"
#include "core/parallel.h"
#include "core/scratch.h"
#include "kernels/transform.h"

namespace sparsespan {

namespace {

constexpr std::string_view kOp = "hadamard_transform";

void validate(const HadamardParams& p) {
  require_dtype(kOp, "x", p.x, {DType::float32, DType::bfloat16});
  require_shape(kOp, "x", p.x, {kAny, kAny}, "[T, n]");
  require_inner_contiguous(kOp, "x", p.x);
  const std::int64_t n = p.x.shape[1];
  if (n < 1 || !std::has_single_bit(static_cast<std::uint64_t>(n))) {
    refuse_value(kOp, "x", "has a last axis of ", n, ", needs a power of two; pad it with zeros");
  }
  require_output(kOp, "out", p.out, p.x.dtype, {p.x.shape[0], n}, "[T, n]", {&p.x});
}

template <class T>
void run(const HadamardParams& p) {
  const auto x = p.x.as<const T, 2>();
  const auto out = p.out.as<T, 2>();
  const std::int64_t rows = x.shape[0];
  const std::int64_t n = x.shape[1];
  if (rows == 0) return;  // before any scratch: an empty input may claim rows of any length
  const Scratch<float> scratch(row_team_size(rows, n, p.threads) * round_up(n, 16));
  const auto hadamard = transform_kernels().hadamard;
  parallel_rows(rows, n, p.threads, [&](std::int64_t t, int slot) {
    float* row = scratch.data() + slot * round_up(n, 16);
    row_to_float(x.row(t), row, n);
    hadamard(row, n, p.scale);
    row_from_float(row, out.row(t), n);
  });
}

}  // namespace

void hadamard_transform(const HadamardParams& p) {
  validate(p);
  if (p.x.dtype == DType::bfloat16) {
    run<BFloat16>(p);
  } else {
    run<float>(p);
  }
}

}  // namespace sparsespan
