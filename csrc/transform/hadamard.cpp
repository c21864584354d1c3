#include "transform/hadamard.h"

#include <bit>
#include <cstddef>

#include "core/memory.h"
#include "core/row_blocks.h"
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

}  // namespace

void hadamard_transform(const HadamardParams& p) {
  validate(p);
  const std::int64_t rows = p.x.shape[0];
  const std::int64_t n = p.x.shape[1];
  if (rows == 0) return;  // before any scratch: an empty input may claim rows of any length
  const int element = size_of(p.x.dtype);
  const std::int64_t room = round_up(n, 16);
  const Scratch<float> scratch(block_team_size(rows, n, p.threads) * room);
  const auto hadamard = transform_kernels().hadamard;
  parallel_row_blocks(rows, n, p.threads, [&](std::int64_t first, std::int64_t last, int slot) {
    hadamard({.in = static_cast<const std::byte*>(p.x.data) + first * p.x.strides[0] * element,
              .out = static_cast<std::byte*>(p.out.data) + first * p.out.strides[0] * element,
              .in_stride = p.x.strides[0],
              .out_stride = p.out.strides[0],
              .rows = last - first,
              .n = n,
              .scratch = scratch.data() + slot * room,
              .scale = p.scale,
              .bfloat16 = p.x.dtype == DType::bfloat16,
              .stream = outgrows_caches(rows * n * element)});
  });
}

}  // namespace sparsespan
