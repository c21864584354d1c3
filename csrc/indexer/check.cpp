#include "indexer/check.h"

#include <cmath>
#include <limits>

namespace sparsespan::indexer {

namespace {

Narrow narrow_of(DType dtype) {
  switch (dtype) {
    case DType::bfloat16: return Narrow::bfloat16;
    case DType::float8_e4m3fn: return Narrow::e4m3;
    default: return Narrow::float32;
  }
}

void require_scale(std::string_view op, std::string_view argument, std::int64_t at, float scale) {
  if (!(scale >= 0.0F) || !std::isfinite(scale)) {
    refuse_value(op, argument, "has ", scale, " at key ", at, ", needs finite scales that are not negative");
  }
}

// Scales of keys that no row sees may be anything: only the union of the windows is looked at.
void require_ragged_scales(std::string_view op, const ScoreProblem& p) {
  std::vector<Window> sorted(p.windows);
  std::sort(sorted.begin(), sorted.end(), [](Window a, Window b) { return a.begin < b.begin; });
  std::int64_t done = 0;
  for (const Window w : sorted) {
    for (std::int64_t s = std::max(done, w.begin); s < w.end; ++s) {
      require_scale(op, "k_scale", s, p.keys.scale(0, s));
    }
    done = std::max(done, w.end);
  }
}

void set_ragged_windows(std::string_view op, const Tensor& ks, const Tensor& ke, ScoreProblem& p) {
  for (const auto& [name, t] : {std::pair{"ks", &ks}, std::pair{"ke", &ke}}) {
    require_int(op, name, *t);
    require_shape(op, name, *t, {p.rows}, "[T]");
  }
  const IntView<1> begins(ks);
  const IntView<1> ends(ke);
  p.windows.resize(p.rows);
  for (std::int64_t row = 0; row < p.rows; ++row) {
    const std::int64_t begin = begins(row);
    const std::int64_t end = ends(row);
    for (const auto& [name, value] : {std::pair{"ks", begin}, std::pair{"ke", end}}) {
      if (value < 0 || value > p.columns) {
        refuse_value(op, name, "has ", value, " at row ", row, ", needs 0 <= ", name, " <= S = ", p.columns);
      }
    }
    if (begin < end) p.windows[row] = {begin, end};
  }
}

}  // namespace

void require_int32_columns(std::string_view op, std::string_view argument, std::int64_t columns) {
  if (columns > std::numeric_limits<std::int32_t>::max()) {
    refuse_value(op, argument, "has ", columns, " columns, needs at most 2147483647: indices are int32");
  }
}

void set_queries(std::string_view op, const Tensor& q, const Tensor& weights, bool batched, ScoreProblem& p) {
  require_dtype(op, "q", q, {DType::float8_e4m3fn, DType::bfloat16, DType::float32});
  if (!batched || q.rank != 4) {
    require_shape(op, "q", q, {kAny, kAny, kAny}, batched ? "[T, Hi, D] or [B, next_n, Hi, D]" : "[T, Hi, D]");
  }
  require_inner_contiguous(op, "q", q);
  const int head_axis = q.rank - 2;
  p.rows = q.shape[0];
  if (q.rank == 4) {
    if (q.shape[0] > 1 && q.shape[1] > 1 && q.strides[0] != q.shape[1] * q.strides[1]) {
      refuse_value(op, "q", "has leading axes that do not lie one behind the other; make it contiguous first");
    }
    p.rows = checked_product(op, "q", q.shape[0], q.shape[1]);
  }
  p.heads = q.shape[head_axis];
  p.dim = q.shape[head_axis + 1];
  if (p.heads < 1 || p.dim < 1) {
    refuse_value(op, "q", "has shape ", q.shape_text(), ", needs at least one head and one dimension");
  }
  const int bytes = size_of(q.dtype);
  p.q = static_cast<const std::byte*>(q.data);
  p.q_type = narrow_of(q.dtype);
  // With one token a request the stride of next_n means nothing (NumPy may give 0): rows are requests then.
  const int row_axis = q.rank == 4 && q.shape[1] == 1 ? 0 : head_axis - 1;
  p.q_row_bytes = q.strides[row_axis] * bytes;
  p.q_head_bytes = q.strides[head_axis] * bytes;
  require_dtype(op, "weights", weights, {DType::float32});
  require_shape(op, "weights", weights, {p.rows, p.heads}, "[T, Hi]");
  require_inner_contiguous(op, "weights", weights);
  p.weights = weights.as<const float, 2>();
}

void set_ragged_keys(std::string_view op, const RaggedKeys& keys, Validate validate, ScoreProblem& p) {
  const Tensor& k = keys.k;
  require_dtype(op, "k", k, {DType::float8_e4m3fn, DType::bfloat16, DType::float32});
  require_shape(op, "k", k, {kAny, p.dim}, "[S, D]");
  require_inner_contiguous(op, "k", k);
  require_int32_columns(op, "k", k.shape[0]);
  p.columns = k.shape[0];
  p.keys.type = narrow_of(k.dtype);
  p.keys.rows = static_cast<const std::byte*>(k.data);
  p.keys.row_bytes = k.strides[0] * size_of(k.dtype);
  set_ragged_windows(op, keys.ks, keys.ke, p);
  if (keys.k_scale) {
    if (k.dtype != DType::float8_e4m3fn) {
      refuse_value(op, "k_scale", "is given with ", name_of(k.dtype), " keys, needs float8_e4m3fn keys; pass None");
    }
    require_dtype(op, "k_scale", keys.k_scale, {DType::float32});
    require_shape(op, "k_scale", keys.k_scale, {p.columns}, "[S]");
    p.keys.scales = static_cast<const float*>(keys.k_scale.data);
    p.keys.scale_stride = keys.k_scale.strides[0];
    if (validate == Validate::full) require_ragged_scales(op, p);
  }
  for (std::int64_t row = 0; row < p.rows; row += kGroupRows) {
    p.groups.push_back({row, std::min(p.rows, row + kGroupRows), 0});
  }
  p.choose_kernels();
}

}  // namespace sparsespan::indexer
