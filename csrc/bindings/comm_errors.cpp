// comm_error and its kin become the exceptions of sparsespan.comm, fields included. Ctrl-C ends waits.

#include "bindings/comm_support.h"
#include "comm/poll.h"

#include <pybind11/stl.h>

namespace sparsespan::bindings {

namespace {

void raise_as(const char* name, const comm_error& e) {
  const py::object type = py::module_::import("sparsespan.comm._errors").attr(name);
  const py::object error = type(e.what());
  error.attr("op") = e.op;
  error.attr("sequence") = e.sequence;
  error.attr("ranks") = py::tuple(py::cast(e.ranks));
  error.attr("field") = e.field;
  error.attr("record") = e.record;
  PyErr_SetObject(type.ptr(), error.ptr());
}

void check_signals() {
  const py::gil_scoped_acquire acquire;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

}  // namespace

void register_comm_errors(py::module_& /*m*/) {
  py::register_local_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const comm_timeout& e) {
      raise_as("CommTimeout", e);
    } catch (const rank_mismatch& e) {
      raise_as("RankMismatch", e);
    } catch (const comm_aborted& e) {
      raise_as("CommAborted", e);
    } catch (const checksum_mismatch& e) {
      raise_as("ChecksumMismatch", e);
    } catch (const comm_error& e) {
      raise_as("CommError", e);
    }
  });
  set_poll_hook(&check_signals);
}

}  // namespace sparsespan::bindings
