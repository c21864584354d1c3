#pragma once

// Shared by the bindings of communicators.

#include <memory>
#include <optional>
#include <string>

#include "bindings/arrays.h"
#include "comm/communicator.h"

namespace sparsespan::bindings {

// Python objects that an operation keeps alive; let go with the GIL held, wherever that happens.
template <class... Objects>
std::shared_ptr<void> keep_alive(const Objects&... objects) {
  auto* kept = new py::tuple(py::make_tuple(objects...));
  return {kept, [](void* p) {
            const py::gil_scoped_acquire acquire;
            delete static_cast<py::tuple*>(p);
          }};
}

template <class... Objects>
CommOptions comm_options(std::optional<double> timeout, const std::string& plan, const Objects&... objects) {
  CommOptions options;
  if (timeout && !(*timeout > 0)) {
    refuse_value("Communicator", "timeout", "is ", *timeout, ", needs seconds above 0");
  }
  options.timeout = timeout.value_or(-1);
  options.plan = plan_hash(plan);
  options.keep = keep_alive(objects...);
  return options;
}

void register_comm_errors(py::module_& m);

}  // namespace sparsespan::bindings
