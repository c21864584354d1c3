#include "bindings/arrays.h"
#include "transform/rope.h"
#include "transform/yarn.h"

namespace sparsespan::bindings {

namespace {

py::object bind_rope(const py::object& x, const py::object& positions, const py::object& cos_sin, bool interleaved,
                     const py::object& out, int threads, const std::string& validate) {
  RopeParams p;
  p.validate = parse_validate("apply_rope", validate);
  p.x = tokens_view("apply_rope", "x", x);
  p.positions = view("apply_rope", "positions", positions);
  p.cos_sin = view("apply_rope", "cos_sin", cos_sin);
  const py::object result = out_or_empty_like(out, x, p.x.dtype);
  require_leading_axes("apply_rope", "out", result, x);
  p.out = tokens_view("apply_rope", "out", result);
  p.interleaved = interleaved;
  p.threads = threads;
  without_gil([&] { apply_rope(p); });
  return result;
}

bool is_exact(std::string_view op, const std::string& arithmetic) {
  if (arithmetic != "float32" && arithmetic != "float64") {
    refuse_value(op, "arithmetic", "is \"", arithmetic, "\", needs \"float32\" or \"float64\"");
  }
  return arithmetic == "float64";
}

py::object bind_frequencies(YarnParams p, const std::string& arithmetic, const py::object& out) {
  p.exact = is_exact("yarn_frequencies", arithmetic);
  require_yarn("yarn_frequencies", p);
  const py::object result = out_or_empty(out, p.exact ? DType::float64 : DType::float32, {p.dim / 2});
  p.out = view("yarn_frequencies", "out", result);
  without_gil([&] { yarn_frequencies(p); });
  return result;
}

py::object bind_cos_sin(YarnParams p, const std::string& arithmetic, const py::object& out, int threads) {
  p.exact = is_exact("yarn_cos_sin", arithmetic);
  p.threads = threads;
  require_yarn("yarn_cos_sin", p);
  const py::object result = out_or_empty(out, DType::float32, {p.max_positions, p.dim});
  p.out = view("yarn_cos_sin", "out", result);
  without_gil([&] { yarn_cos_sin(p); });
  return result;
}

}  // namespace

void register_rope(py::module_& parent) {
  auto m = parent.def_submodule("transform");
  m.def("apply_rope", &bind_rope, py::arg("x"), py::arg("positions"), py::arg("cos_sin"),
        py::arg("interleaved").noconvert(), py::arg("out") = py::none(), py::arg("threads") = 0,
        py::arg("validate") = "full");
  m.def(
      "yarn_frequencies",
      [](std::int64_t dim, double base, double factor, std::int64_t original_max_position, double beta_fast,
         double beta_slow, const std::string& arithmetic, const py::object& out) {
        YarnParams p{.dim = dim,
                     .base = base,
                     .factor = factor,
                     .original_max_position = original_max_position,
                     .beta_fast = beta_fast,
                     .beta_slow = beta_slow};
        return bind_frequencies(p, arithmetic, out);
      },
      py::arg("dim"), py::arg("base"), py::arg("factor"), py::arg("original_max_position"), py::arg("beta_fast"),
      py::arg("beta_slow"), py::arg("arithmetic"), py::arg("out") = py::none());
  m.def(
      "yarn_cos_sin",
      [](std::int64_t max_positions, std::int64_t dim, double base, double factor, std::int64_t original_max_position,
         double beta_fast, double beta_slow, double mscale, double mscale_all_dim, const std::string& arithmetic,
         const py::object& out, int threads) {
        YarnParams p{.max_positions = max_positions,
                     .dim = dim,
                     .base = base,
                     .factor = factor,
                     .original_max_position = original_max_position,
                     .beta_fast = beta_fast,
                     .beta_slow = beta_slow,
                     .mscale = mscale,
                     .mscale_all_dim = mscale_all_dim};
        return bind_cos_sin(p, arithmetic, out, threads);
      },
      py::arg("max_positions"), py::arg("dim"), py::arg("base"), py::arg("factor"), py::arg("original_max_position"),
      py::arg("beta_fast"), py::arg("beta_slow"), py::arg("mscale"), py::arg("mscale_all_dim"), py::arg("arithmetic"),
      py::arg("out") = py::none(), py::arg("threads") = 0);
  m.def("yarn_softmax_scale", &yarn_softmax_scale, py::arg("head_dim"), py::arg("factor"), py::arg("mscale_all_dim"));
}

}  // namespace sparsespan::bindings
