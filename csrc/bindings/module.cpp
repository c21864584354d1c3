#include <pybind11/pybind11.h>

#include "core/check.h"
#include "register_families.h"  // generated: one register_<family> per bind_<family>.cpp

namespace py = pybind11;

PYBIND11_MODULE(_core, m) {
  m.doc() = "sparsespan's C++ core. Use the documented functions of the sparsespan package.";
  py::register_local_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const sparsespan::type_error& e) {
      py::set_error(PyExc_TypeError, e.what());
    }
  });
  sparsespan::bindings::register_families(m);
}
