#include "bindings/arrays.h"
#include "transform/norms.h"

namespace sparsespan::bindings {

namespace {

NormCast parse_cast(std::string_view op, const std::string& text) {
  if (text == "after") return NormCast::after;
  if (text == "before") return NormCast::before;
  refuse_value(op, "cast", "is \"", text, "\", needs \"after\" or \"before\" (the product with w)");
}

py::object bind_rms_norm(const py::object& x, const py::object& w, float eps, const std::string& cast,
                         const py::object& out, int threads) {
  RmsNormParams p;
  p.x = rows_view("rms_norm", "x", x);
  p.w = view("rms_norm", "w", w);
  p.eps = eps;
  p.cast = parse_cast("rms_norm", cast);
  const py::object result = out_or_empty_like(out, x, p.x.dtype);
  require_leading_axes("rms_norm", "out", result, x);
  p.out = rows_view("rms_norm", "out", result);
  p.threads = threads;
  without_gil([&] { rms_norm(p); });
  return result;
}

py::tuple bind_add_rms_norm(const py::object& x, const py::object& residual, const py::object& w, float eps,
                            const std::string& cast, const py::object& out, const py::object& residual_out,
                            int threads) {
  RmsNormParams p;
  p.x = rows_view("add_rms_norm", "x", x);
  p.residual = rows_view("add_rms_norm", "residual", residual);
  p.w = view("add_rms_norm", "w", w);
  p.eps = eps;
  p.cast = parse_cast("add_rms_norm", cast);
  if (!p.residual) refuse_type("add_rms_norm", "residual", "is None, needs an array; without one call rms_norm");
  const py::object result = out_or_empty_like(out, x, p.x.dtype);
  const py::object sum = out_or_empty_like(residual_out, x, p.x.dtype);
  require_leading_axes("add_rms_norm", "out", result, x);
  p.out = rows_view("add_rms_norm", "out", result);
  require_leading_axes("add_rms_norm", "residual_out", sum, x);
  p.residual_out = rows_view("add_rms_norm", "residual_out", sum);
  p.threads = threads;
  without_gil([&] { rms_norm(p); });
  return py::make_tuple(result, sum);
}

py::object bind_layer_norm(const py::object& x, const py::object& w, const py::object& b, float eps,
                           const py::object& out, int threads) {
  LayerNormParams p;
  p.x = rows_view("layer_norm", "x", x);
  p.w = view("layer_norm", "w", w);
  p.b = view("layer_norm", "b", b);
  p.eps = eps;
  const py::object result = out_or_empty_like(out, x, p.x.dtype);
  require_leading_axes("layer_norm", "out", result, x);
  p.out = rows_view("layer_norm", "out", result);
  p.threads = threads;
  without_gil([&] { layer_norm(p); });
  return result;
}

}  // namespace

void register_norms(py::module_& parent) {
  auto m = parent.def_submodule("transform");
  m.def("rms_norm", &bind_rms_norm, py::arg("x"), py::arg("w"), py::arg("eps"), py::arg("cast"),
        py::arg("out") = py::none(), py::arg("threads") = 0);
  m.def("add_rms_norm", &bind_add_rms_norm, py::arg("x"), py::arg("residual"), py::arg("w"), py::arg("eps"),
        py::arg("cast"), py::arg("out") = py::none(), py::arg("residual_out") = py::none(), py::arg("threads") = 0);
  m.def("layer_norm", &bind_layer_norm, py::arg("x"), py::arg("w"), py::arg("b"), py::arg("eps"),
        py::arg("out") = py::none(), py::arg("threads") = 0);
}

}  // namespace sparsespan::bindings
