#include "core/tensor.h"

#include <cstdlib>

namespace sparsespan {

namespace {

struct DTypeFacts {
  std::string_view name;
  int bytes;
};

constexpr DTypeFacts kFacts[] = {
    {"none", 0},
    {"float32", 4},
    {"float64", 8},
    {"float16", 2},
    {"bfloat16", 2},
    {"float8_e4m3fn", 1},
    {"float8_e4m3fnuz", 1},
    {"float8_e5m2", 1},
    {"float8_e8m0fnu", 1},
    {"bool", 1},
    {"uint8", 1},
    {"int8", 1},
    {"uint16", 2},
    {"int16", 2},
    {"uint32", 4},
    {"int32", 4},
    {"uint64", 8},
    {"int64", 8},
    {"an unsupported dtype", 0},
};

std::string extents_text(std::initializer_list<std::int64_t> extents) {
  std::string text = "[";
  bool first = true;
  for (auto extent : extents) {
    if (!first) text += ", ";
    first = false;
    text += extent == kAny ? std::string("*") : std::to_string(extent);
  }
  return text + "]";
}

bool overlaps(const Tensor& a, const Tensor& b) {
  const auto x = a.extent();
  const auto y = b.extent();
  return x[0] < y[1] && y[0] < x[1];
}

// Whether two places of the view may be one place in memory. Axes by ascending stride: each must step over all that the
// shorter ones reach. Every slice, transpose and padded array passes; a broadcast axis does not.
bool meets_itself(const Tensor& t) {
  std::array<std::array<std::int64_t, 2>, Tensor::kMaxRank> axes{};  // stride, extent
  int used = 0;
  for (int i = 0; i < t.rank; ++i) {
    if (t.shape[i] == 0) return false;
    if (t.shape[i] > 1) axes[used++] = {std::abs(t.strides[i]), t.shape[i]};
  }
  std::sort(axes.begin(), axes.begin() + used);
  std::int64_t reach = 0;
  for (int i = 0; i < used; ++i) {
    if (axes[i][0] <= reach) return true;
    reach += axes[i][0] * (axes[i][1] - 1);
  }
  return false;
}

}  // namespace

std::string_view name_of(DType dtype) { return kFacts[static_cast<int>(dtype)].name; }

int size_of(DType dtype) { return kFacts[static_cast<int>(dtype)].bytes; }

std::array<const std::byte*, 2> Tensor::extent() const {
  const auto* base = static_cast<const std::byte*>(data);
  std::int64_t low = 0;
  std::int64_t high = 0;
  for (int i = 0; i < rank; ++i) {
    if (shape[i] == 0) return {base, base};
    const std::int64_t span = (shape[i] - 1) * strides[i];
    (span < 0 ? low : high) += span;
  }
  const std::int64_t bytes = size_of(dtype);
  return {base + low * bytes, base + (high + 1) * bytes};
}

std::string Tensor::shape_text() const {
  std::string text = "[";
  for (int i = 0; i < rank; ++i) {
    if (i != 0) text += ", ";
    text += std::to_string(shape[i]);
  }
  return text + "]";
}

void require_dtype(std::string_view op, std::string_view argument, const Tensor& t,
                   std::initializer_list<DType> allowed) {
  if (std::find(allowed.begin(), allowed.end(), t.dtype) != allowed.end()) return;
  std::string needs;
  for (auto dtype : allowed) {
    if (!needs.empty()) needs += " or ";
    needs += name_of(dtype);
  }
  if (!t) refuse_type(op, argument, "is None, needs an array of ", needs);
  refuse_type(op, argument, "has dtype ", name_of(t.dtype), ", needs ", needs,
              "; convert it first, nothing is cast silently");
}

void require_shape(std::string_view op, std::string_view argument, const Tensor& t,
                   std::initializer_list<std::int64_t> extents, std::string_view names) {
  bool same = t.rank == static_cast<int>(extents.size());
  int axis = 0;
  for (auto extent : extents) {
    if (same && extent != kAny && t.shape[axis] != extent) same = false;
    ++axis;
  }
  if (!same) {
    refuse_value(op, argument, "has shape ", t.shape_text(), ", needs ", names, " = ", extents_text(extents));
  }
}

void require_inner_contiguous(std::string_view op, std::string_view argument, const Tensor& t) {
  if (t.rank > 0 && t.shape[t.rank - 1] > 1 && t.strides[t.rank - 1] != 1) {
    refuse_value(op, argument, "has a strided last axis (stride ", t.strides[t.rank - 1],
                 "), needs stride 1; make it contiguous first (numpy.ascontiguousarray, .contiguous())");
  }
}

void require_contiguous(std::string_view op, std::string_view argument, const Tensor& t) {
  if (t.size() == 0) return;  // the strides of nothing say nothing
  std::int64_t expected = 1;
  for (int i = t.rank - 1; i >= 0; --i) {
    if (t.shape[i] > 1 && t.strides[i] != expected) {
      refuse_value(op, argument, "is not contiguous (axis ", i, " has stride ", t.strides[i], ", needs ", expected,
                   "); make it contiguous first (numpy.ascontiguousarray, .contiguous())");
    }
    expected *= t.shape[i];
  }
}

void require_int(std::string_view op, std::string_view argument, const Tensor& t) {
  require_dtype(op, argument, t, {DType::int32, DType::int64});
}

void require_writable(std::string_view op, std::string_view argument, const Tensor& t,
                      std::initializer_list<const Tensor*> inputs) {
  if (!t.writable) refuse_value(op, argument, "is read-only, needs a writable array");
  if (meets_itself(t)) {
    refuse_value(op, argument,
                 "has elements that share memory with each other (a broadcast view?), needs memory of its ",
                 "own for each; make it contiguous first");
  }
  for (const Tensor* input : inputs) {
    if (input->present && overlaps(t, *input)) {
      refuse_value(op, argument, "shares memory with an input, needs memory of its own");
    }
  }
}

void require_output(std::string_view op, std::string_view argument, const Tensor& out, DType dtype,
                    std::initializer_list<std::int64_t> extents, std::string_view names,
                    std::initializer_list<const Tensor*> inputs) {
  require_dtype(op, argument, out, {dtype});
  require_shape(op, argument, out, extents, names);
  require_inner_contiguous(op, argument, out);
  require_writable(op, argument, out, inputs);
}

}  // namespace sparsespan
