#include "transform/rope.h"

#include <algorithm>
#include <cstddef>

#include "core/memory.h"
#include "core/row_blocks.h"
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

}  // namespace

void apply_rope(const RopeParams& p) {
  validate(p);
  const std::int64_t tokens = p.x.shape[0];
  const std::int64_t heads = p.x.shape[1];
  const std::int64_t d = p.x.shape[2];
  if (tokens == 0 || heads == 0 || d == 0) return;
  const int element = size_of(p.x.dtype);
  const auto table = p.cos_sin.as<const float, 2>();
  const IntView<1> positions(p.positions);
  const std::int64_t room = round_up(2 * d, 16);
  const auto& kernels = transform_kernels();
  const auto rope = p.interleaved ? kernels.rope_interleaved : kernels.rope_half_split;
  // A piece is some heads of one token: even a single token of many heads is shared out.
  const std::int64_t piece = std::min(heads, rows_per_task(d));
  const std::int64_t pieces = ceil_div(heads, piece);
  const Scratch<float> scratch(block_team_size(tokens * pieces, piece * d, p.threads) * room);
  const bool stream = outgrows_caches(tokens * heads * d * element) && p.out.data != p.x.data;
  parallel_row_blocks(tokens * pieces, piece * d, p.threads, [&](std::int64_t first, std::int64_t last, int slot) {
    for (std::int64_t i = first; i < last; ++i) {
      const std::int64_t t = i / pieces;
      const std::int64_t h = i % pieces * piece;
      rope({.in = static_cast<const std::byte*>(p.x.data) + (t * p.x.strides[0] + h * p.x.strides[1]) * element,
            .out = static_cast<std::byte*>(p.out.data) + (t * p.out.strides[0] + h * p.out.strides[1]) * element,
            .in_stride = p.x.strides[1],
            .out_stride = p.out.strides[1],
            .heads = std::min(piece, heads - h),
            .table = table.row(positions(t)),
            .half = d / 2,
            .scratch = scratch.data() + slot * room,
            .bfloat16 = p.x.dtype == DType::bfloat16,
            .stream = stream});
    }
    if (stream) kernels.fence();
  });
}

}  // namespace sparsespan
