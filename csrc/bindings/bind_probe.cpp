#include "bindings/arrays.h"
#include "core/isa.h"
#include "kernels/probe.h"

namespace sparsespan::bindings {

void register_probe(py::module_& m) {
  m.def(
      "probe",
      [](const std::string& isa, std::int64_t iterations, int threads) {
        double flops = 0;
        without_gil([&] { flops = probe_flops_per_second(parse_isa("probe", "isa", isa), iterations, threads); });
        return flops;
      },
      py::arg("isa"), py::arg("iterations") = 1 << 20, py::arg("threads") = 1);
}

}  // namespace sparsespan::bindings
