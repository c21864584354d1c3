#include "attention/checks.h"

#include <array>
#include <cmath>
#include <vector>

#include "core/parallel.h"

namespace sparsespan {

void require_heads(std::string_view op, std::string_view argument, const Tensor& t, std::string_view names) {
  require_dtype(op, argument, t, {DType::float32, DType::bfloat16});
  require_shape(op, argument, t, {kAny, kAny, kAny}, names);
  require_inner_contiguous(op, argument, t);
}

std::int64_t require_queries(std::string_view op, const Tensor& q, const Tensor& q_pe, std::int64_t d_v) {
  require_heads(op, q_pe ? "q[0]" : "q", q, "[T, H, Dqk]");
  if (!q_pe) return q.shape[2];
  require_heads(op, "q[1]", q_pe, "[T, H, Dpe]");
  require_dtype(op, "q[1]", q_pe, {q.dtype});
  require_shape(op, "q[1]", q_pe, {q.shape[0], q.shape[1], kAny}, "[T, H, Dpe]");
  if (q.shape[2] < d_v) {  // the two parts the wrong way round fit as well, and give plausible output
    refuse_value(op, "q[0]", "has shape ", q.shape_text(), ", needs a last axis of at least d_v = ", d_v,
                 ": it is the latent part, which meets the values; the rope part is q[1]");
  }
  return q.shape[2] + q_pe.shape[2];
}

std::int64_t require_key_heads(std::string_view op, const Tensor& q, const Tensor& k, const Tensor& v) {
  require_heads(op, "q", q, "[T, H, Dqk]");
  require_heads(op, "k", k, "[S, Hk, Dqk]");
  require_heads(op, "v", v, "[S, Hk, Dv]");
  require_shape(op, "k", k, {kAny, kAny, q.shape[2]}, "[S, Hk, Dqk]");
  require_shape(op, "v", v, {k.shape[0], k.shape[1], kAny}, "[S, Hk, Dv]");
  if (q.shape[2] < 1) refuse_value(op, "q", "has a last axis of 0, needs at least 1");
  if (v.shape[2] < 1) refuse_value(op, "v", "has a last axis of 0, needs at least 1");
  const std::int64_t heads = q.shape[1];
  const std::int64_t key_heads = k.shape[1];
  if (heads == 0 && key_heads == 0) return 1;
  if (key_heads < 1 || heads % key_heads != 0) {
    refuse_value(op, "q", "has ", heads, " heads, needs a multiple of k's ", key_heads);
  }
  return heads / key_heads;
}

void require_scale(std::string_view op, float sm_scale) {
  if (!std::isfinite(sm_scale)) refuse_value(op, "sm_scale", "is ", sm_scale, ", needs a finite number");
}

void require_sink(std::string_view op, const Tensor& attn_sink, std::int64_t heads) {
  if (!attn_sink) return;
  require_dtype(op, "attn_sink", attn_sink, {DType::float32});
  require_shape(op, "attn_sink", attn_sink, {heads}, "[H]");
  const auto sink = attn_sink.as<const float, 1>();
  for (std::int64_t h = 0; h < heads; ++h) {
    if (std::isnan(sink(h))) {
      refuse_value(op, "attn_sink", "is NaN at head ", h, ", needs a number; -inf means no sink");
    }
  }
}

void require_outputs(std::string_view op, const AttentionOutputs& o, std::int64_t rows, std::int64_t heads,
                     std::int64_t d_v, std::initializer_list<const Tensor*> inputs) {
  require_dtype(op, "out", *o.out, {DType::float32, DType::bfloat16});
  require_output(op, "out", *o.out, o.out->dtype, {rows, heads, d_v}, "[T, H, d_v]", inputs);
  require_output(op, "lse", *o.lse, DType::float32, {rows, heads}, "[T, H]", inputs);
  require_output(op, "lse", *o.lse, DType::float32, {rows, heads}, "[T, H]", {o.out});
  if (o.max_logits == nullptr) return;
  require_output(op, "max_logits", *o.max_logits, DType::float32, {rows, heads}, "[T, H]", inputs);
  require_output(op, "max_logits", *o.max_logits, DType::float32, {rows, heads}, "[T, H]", {o.out, o.lse});
}

namespace {

void check_row(std::string_view op, const IndexCheck& c, std::int64_t t, std::int64_t count) {
  const IntView<2> indices(c.indices);
  const IntView<2> lanes(c.lane_of);
  for (std::int64_t j = 0; j < count; ++j) {
    const std::int64_t index = indices(t, j);
    if (index == -1) continue;
    if (index < 0 || index >= c.size) {
      refuse_index(op, "indices", "holds ", index, " at row ", t, ", column ", j, ", needs -1 or one of the ", c.size,
                   " ", c.space);
    }
    if (!c.lane_of) continue;
    const std::int64_t lane = lanes(t, j);
    if (lane < 0 || lane >= 8) {
      refuse_index(op, "lane_of", "holds ", lane, " at row ", t, ", column ", j, ", needs a lane in 0..7");
    }
  }
}

}  // namespace

void require_indices(std::string_view op, const IndexCheck& c, Validate validate, int threads) {
  const std::int64_t rows = c.indices.shape[0];
  const std::int64_t columns = c.indices.shape[1];
  if (c.topk_length) {
    require_int(op, "topk_length", c.topk_length);
    require_shape(op, "topk_length", c.topk_length, {rows}, "[T]");
    const IntView<1> length(c.topk_length);
    for (std::int64_t t = 0; t < rows; ++t) {
      if (length(t) < 0 || length(t) > columns) {
        refuse_value(op, "topk_length", "is ", length(t), " at row ", t, ", needs 0..", columns,
                     " (the columns of indices)");
      }
    }
  }
  if (c.lane_of) {
    require_int(op, "lane_of", c.lane_of);
    require_shape(op, "lane_of", c.lane_of, {rows, columns}, "[T, K]");
  }
  if (validate == Validate::trusted) return;
  const IntView<1> length(c.topk_length);
  parallel_for(rows, threads, [&](std::int64_t t, int) { check_row(op, c, t, c.topk_length ? length(t) : columns); });
}

Tensor squeeze_head_axis(std::string_view op, std::string_view argument, const Tensor& t) {
  if (t.rank != 3) return t;
  require_shape(op, argument, t, {kAny, 1, kAny}, "[T, K] or [T, 1, K]");
  Tensor flat = t;
  flat.rank = 2;
  flat.shape[1] = t.shape[2];
  flat.strides[1] = t.strides[2];
  return flat;
}

}  // namespace sparsespan
