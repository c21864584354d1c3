#include <pybind11/stl.h>

#include "bindings/arrays.h"
#include "core/build_info.h"
#include "core/isa.h"
#include "core/parallel.h"
#include "core/types.h"

namespace sparsespan::bindings {

void register_runtime(py::module_& m) {
  m.def("build_info", &build_info);
  m.def("num_threads", &num_threads);
  m.def("set_num_threads", &set_num_threads, py::arg("n"));
  m.def("set_num_threads_here", &set_num_threads_here, py::arg("n"));
  m.def("set_openmp_hint", &set_openmp_hint, py::arg("path"));
  m.def("max_isa", [] { return std::string(name_of(max_isa())); });
  m.def("active_isa", [] { return std::string(name_of(active_isa())); });
  m.def(
      "set_max_isa", [](const std::string& isa) { set_max_isa(parse_isa("set_max_isa", "isa", isa)); }, py::arg("isa"));
  m.def("available_isas", [] {
    std::vector<std::string> names;
    for (int i = 0; i < kIsaCount; ++i) {
      if (isa_refusal(static_cast<Isa>(i)).empty()) names.emplace_back(kIsaNames[i]);
    }
    return names;
  });
}

}  // namespace sparsespan::bindings
