#include "bindings/arrays.h"
#include "transform/hadamard.h"

namespace sparsespan::bindings {

namespace {

py::object bind_hadamard(const py::object& x, float scale, const py::object& out, int threads) {
  HadamardParams p;
  p.x = rows_view("hadamard_transform", "x", x);
  const py::object result = out_or_empty_like(out, x, p.x.dtype);
  require_leading_axes("hadamard_transform", "out", result, x);
  p.out = rows_view("hadamard_transform", "out", result);
  p.scale = scale;
  p.threads = threads;
  without_gil([&] { hadamard_transform(p); });
  return result;
}

}  // namespace

void register_transform(py::module_& parent) {
  auto m = parent.def_submodule("transform");
  m.def("hadamard_transform", &bind_hadamard, py::arg("x"), py::arg("scale"), py::arg("out") = py::none(),
        py::arg("threads") = 0);
}

}  // namespace sparsespan::bindings
