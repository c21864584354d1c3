#include "attention/merge_states.h"

#include <algorithm>
#include <bit>

#include "attention/checks.h"
#include "attention/state.h"
#include "core/convert.h"
#include "core/parallel.h"
#include "core/scratch.h"
#include "kernels/attention.h"

namespace sparsespan {

namespace {

constexpr std::string_view kOp = "merge_states";

void validate(const MergeStatesParams& p) {
  require_dtype(kOp, "outs", p.outs, {DType::float32, DType::bfloat16});
  require_shape(kOp, "outs", p.outs, {kAny, kAny, kAny, kAny}, "[n, T, H, D]");
  require_inner_contiguous(kOp, "outs", p.outs);
  const auto& s = p.outs.shape;
  require_dtype(kOp, "lses", p.lses, {DType::float32});
  require_shape(kOp, "lses", p.lses, {s[0], s[1], s[2]}, "[n, T, H]");
  require_sink(kOp, p.attn_sink, s[2]);
  require_outputs(kOp, {&p.out, &p.lse, nullptr}, s[1], s[2], s[3], {&p.outs, &p.lses, &p.attn_sink});
}

struct Merger {
  const MergeStatesParams& p;
  const AttentionKernels& kernels;
  std::int64_t row;
  std::int64_t head;
  std::int64_t leaf_stride;
  float* levels;  // [levels][width]
  std::int64_t width;

  bool is_empty(std::int64_t i) const { return std::isinf(lse(i)); }
  float lse(std::int64_t i) const { return p.lses.as<const float, 3>()(i, row, head); }
  void load(std::int64_t i, float* out) const {
    if (is_empty(i)) {  // whatever stands in its output
      std::fill_n(out, width, 0.0F);
    } else if (p.outs.dtype == DType::bfloat16) {
      row_to_float(p.outs.as<const BFloat16, 4>().row(i, row, head), out, width);
    } else {
      row_to_float(p.outs.as<const float, 4>().row(i, row, head), out, width);
    }
  }
  // The subtree of i, i + stride, i + 2 stride, ...; i < n.
  float merge(std::int64_t i, std::int64_t stride, float* out, int level) const {
    if (stride == leaf_stride) {
      load(i, out);
      return is_empty(i) ? kMinusInf : lse(i);
    }
    const float left = merge(i, 2 * stride, out, level + 1);
    if (i + stride >= p.outs.shape[0]) return left;
    if (2 * stride == leaf_stride && p.outs.dtype == DType::float32) {  // a leaf: taken where it lies
      const MergeWeights w = merge_weights(left, lse(i + stride));
      kernels.mix(out, w.a, p.outs.as<const float, 4>().row(i + stride, row, head), w.b, width);
      return w.lse;
    }
    float* other = levels + level * width;
    const float right = merge(i + stride, 2 * stride, other, level + 1);
    const MergeWeights w = merge_weights(left, right);
    kernels.mix(out, w.a, other, w.b, width);
    return w.lse;
  }
};

void write(const MergeStatesParams& p, std::int64_t row, std::int64_t head, float* result, float lse) {
  const std::int64_t width = p.out.shape[2];
  if (p.attn_sink) {
    const float factor = sink_factor(p.attn_sink.as<const float, 1>()(head), lse);
    for (std::int64_t d = 0; d < width; ++d) result[d] *= factor;
  }
  if (p.out.dtype == DType::bfloat16) {
    row_from_float(result, p.out.as<BFloat16, 3>().row(row, head), width);
  } else {
    row_from_float(result, p.out.as<float, 3>().row(row, head), width);
  }
  p.lse.as<float, 2>()(row, head) = lse;
}

}  // namespace

void merge_states(const MergeStatesParams& p) {
  validate(p);
  const std::int64_t n = p.outs.shape[0];
  const std::int64_t rows = p.outs.shape[1];
  const std::int64_t heads = p.outs.shape[2];
  const std::int64_t width = p.outs.shape[3];
  const auto leaf_stride =
      static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(std::max<std::int64_t>(n, 1))));
  const int levels = std::bit_width(static_cast<std::uint64_t>(leaf_stride));
  const std::int64_t room = round_up((levels + 1) * width, 16);
  const Scratch<float> scratch(team_size(rows, p.threads) * room);
  parallel_for(rows, p.threads, [&](std::int64_t t, int slot) {
    float* result = scratch.data() + slot * room;
    for (std::int64_t h = 0; h < heads; ++h) {
      const Merger merger{p, attention_kernels(), t, h, leaf_stride, result + width, width};
      std::fill_n(result, width, 0.0F);
      write(p, t, h, result, n == 0 ? kMinusInf : merger.merge(0, 1, result, 0));
    }
  });
}

}  // namespace sparsespan
