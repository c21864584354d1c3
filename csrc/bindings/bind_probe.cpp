#include <pybind11/stl.h>

#include "bindings/arrays.h"
#include "core/check.h"
#include "core/isa.h"
#include "kernels/probe.h"

namespace sparsespan::bindings {

namespace {

// uint8, one axis, as many bytes as the other one.
void require_bytes(std::string_view argument, const py::buffer_info& info, std::int64_t bytes) {
  if (info.itemsize == 1 && info.ndim == 1 && info.size == bytes && (info.size < 2 || info.strides[0] == 1)) return;
  refuse_value("probe", argument, "has ", info.size, " elements of ", info.itemsize, " bytes in ", info.ndim,
               " axes, needs ", bytes, " bytes one behind the other (a uint8 array)");
}

}  // namespace

void register_probe(py::module_& m) {
  m.def(
      "probe",
      [](const std::string& isa, std::int64_t iterations, int threads) {
        double flops = 0;
        without_gil([&] { flops = probe_flops_per_second(parse_isa("probe", "isa", isa), iterations, threads); });
        return flops;
      },
      py::arg("isa"), py::arg("iterations") = 1 << 20, py::arg("threads") = 1);
  m.def(
      "probe_per_thread",
      [](const std::string& isa, std::int64_t iterations, int threads) {
        std::vector<double> rates;
        without_gil([&] { rates = probe_flops_per_thread(parse_isa("probe", "isa", isa), iterations, threads); });
        return rates;
      },
      py::arg("isa"), py::arg("iterations") = 1 << 13, py::arg("threads") = 0);
  m.def(
      "probe_copy",
      [](const py::buffer& from, const py::buffer& to, int threads) {
        const py::buffer_info a = from.request();
        const py::buffer_info b = to.request(true);
        require_bytes("source", a, a.size * a.itemsize);
        require_bytes("to", b, a.size * a.itemsize);
        without_gil([&] {
          probe_copy(static_cast<const std::byte*>(a.ptr), static_cast<std::byte*>(b.ptr), a.size * a.itemsize,
                     threads);
        });
      },
      py::arg("source"), py::arg("to"), py::arg("threads") = 0);
  m.def(
      "probe_read",
      [](const py::buffer& from, int threads) {
        const py::buffer_info a = from.request();
        require_bytes("source", a, a.size * a.itemsize);
        std::uint64_t sum = 0;
        without_gil([&] { sum = probe_read(static_cast<const std::byte*>(a.ptr), a.size * a.itemsize, threads); });
        return sum;
      },
      py::arg("source"), py::arg("threads") = 0);
}

}  // namespace sparsespan::bindings
