#include <vector>

#include "bindings/arrays.h"
#include "transform/linear.h"

namespace sparsespan::bindings {

namespace {

// [T, K] as [T, 1, K], without a copy.
Tensor with_head(const Tensor& t) {
  Tensor three = t;
  three.rank = 3;
  three.shape = {t.shape[0], 1, t.shape[1]};
  three.strides = {t.strides[0], t.strides[1] * t.shape[1], t.strides[1]};
  return three;
}

Tensor as_heads(std::string_view argument, const py::object& object, bool heads) {
  if (heads) return view("linear", argument, object);
  const Tensor rows = rows_view("linear", argument, object);
  return rows ? with_head(rows) : rows;
}

Tensor weight_of(const py::object& w) {
  Tensor t = view("linear", "w", w);
  if (!t || t.rank == 3) return t;
  if (t.rank != 2) refuse_value("linear", "w", "has shape ", t.shape_text(), ", needs [N, K] or [H, N, K]");
  t = with_head(t);
  std::swap(t.shape[0], t.shape[1]);
  std::swap(t.strides[0], t.strides[1]);
  return t;
}

DType out_dtype(const std::string& name, const Tensor& x) {
  if (name == "float32") return DType::float32;
  if (name == "bfloat16") return DType::bfloat16;
  if (name.empty()) return x.dtype;
  refuse_value("linear", "out_dtype", "is \"", name, "\", needs \"float32\" or \"bfloat16\"");
}

py::object bind_linear(const py::object& x, const py::object& w, const py::object& weight_scale_inv, std::int64_t block,
                       const std::string& dtype, const py::object& out, int threads, const std::string& validate) {
  LinearParams p;
  p.w = weight_of(w);
  const bool heads = p.w && view("linear", "w", w).rank == 3;
  p.x = as_heads("x", x, heads);
  p.scale = view("linear", "weight_scale_inv", weight_scale_inv);
  p.block = block;
  p.threads = threads;
  p.validate = parse_validate("linear", validate);
  py::object result = out;
  const DType wanted = out_dtype(dtype, p.x);
  if (out.is_none() && p.x && p.w && wanted != DType::other) {
    const auto array = py::reinterpret_borrow<py::array>(x);
    std::vector<py::ssize_t> shape(array.shape(), array.shape() + array.ndim());
    shape.back() = p.w.shape[1];
    result = py::array(numpy_dtype(wanted), shape);
  }
  if (!heads) require_leading_axes("linear", "out", result, x);
  p.out = as_heads("out", result, heads);
  without_gil([&] { linear(p); });
  return result;
}

}  // namespace

void register_linear(py::module_& parent) {
  auto m = parent.def_submodule("models");
  m.def("linear", &bind_linear, py::arg("x"), py::arg("w"), py::arg("weight_scale_inv"), py::arg("block"),
        py::arg("out_dtype"), py::arg("out"), py::arg("threads"), py::arg("validate"));
}

}  // namespace sparsespan::bindings
