#include "transform/rope.h"

#include <algorithm>

#include "core/convert.h"
#include "core/parallel.h"
#include "core/scratch.h"
#include "kernels/transform.h"
#include "transform/in_place.h"

namespace sparsespan {

namespace {

constexpr std::string_view kOp = "apply_rope";

void validate_positions(const RopeParams& p) {
  const IntView<1> positions(p.positions);
  const std::int64_t limit = p.cos_sin.shape[0];
  for (std::int64_t t = 0; t < positions.shape[0]; ++t) {
    const std::int64_t position = positions(t);
    if (position < 0 || position >= limit) {
      refuse_index(kOp, "positions", "has ", position, " in row ", t, ", needs 0 <= position < ", limit,
                   ", the rows of cos_sin; a longer table mends it");
    }
  }
}

void validate(const RopeParams& p) {
  require_dtype(kOp, "x", p.x, {DType::float32, DType::bfloat16});
  require_shape(kOp, "x", p.x, {kAny, kAny, kAny}, "[T, H, d]");
  require_inner_contiguous(kOp, "x", p.x);
  const std::int64_t tokens = p.x.shape[0];
  const std::int64_t d = p.x.shape[2];
  if (d % 2 != 0) refuse_value(kOp, "x", "has a last axis of ", d, ", needs an even one: rope turns pairs");
  require_dtype(kOp, "cos_sin", p.cos_sin, {DType::float32});
  require_shape(kOp, "cos_sin", p.cos_sin, {kAny, d}, "[max_positions, d], d the last axis of x (pass its rope part)");
  require_inner_contiguous(kOp, "cos_sin", p.cos_sin);
  require_int(kOp, "positions", p.positions);
  require_shape(kOp, "positions", p.positions, {tokens}, "[T], one for each row of x's first axis");
  require_output(kOp, "out", p.out, p.x.dtype, {tokens, p.x.shape[1], d}, "[T, H, d]",
                 {unless_in_place(p.x, p.out), &p.positions, &p.cos_sin});
  if (p.validate == Validate::full) validate_positions(p);
}

template <class T>
void run(const RopeParams& p) {
  const auto x = p.x.as<const T, 3>();
  const auto out = p.out.as<T, 3>();
  const auto table = p.cos_sin.as<const float, 2>();
  const IntView<1> positions(p.positions);
  const std::int64_t heads = x.shape[1];
  const std::int64_t d = x.shape[2];
  const std::int64_t rows = x.shape[0] * heads;
  if (rows == 0) return;
  const Scratch<float> scratch(row_team_size(rows, d, p.threads) * round_up(d, 16));
  const auto& kernels = transform_kernels();
  const auto rope = p.interleaved ? kernels.rope_interleaved : kernels.rope_half_split;
  parallel_rows(rows, d, p.threads, [&](std::int64_t i, int slot) {
    float* row = scratch.data() + slot * round_up(d, 16);
    const std::int64_t t = i / heads;
    const std::int64_t h = i % heads;
    row_to_float(x.row(t, h), row, d);
    rope(row, table.row(positions(t)), d / 2);
    row_from_float(row, out.row(t, h), d);
  });
}

}  // namespace

void apply_rope(const RopeParams& p) {
  validate(p);
  if (p.x.dtype == DType::bfloat16) {
    run<BFloat16>(p);
  } else {
    run<float>(p);
  }
}

}  // namespace sparsespan
