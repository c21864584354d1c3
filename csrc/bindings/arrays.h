#pragma once

// NumPy arrays in, type-erased views out. The only conversions here are of metadata; data is never copied or cast.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <initializer_list>
#include <string>
#include <string_view>

#include "core/tensor.h"

namespace sparsespan::bindings {

namespace py = pybind11;

py::dtype numpy_dtype(DType dtype);

// TypeError when `object` is no array. `None` gives a Tensor that is not present.
Tensor view(std::string_view op, std::string_view argument, const py::object& object);
// The same array seen as [-1, last axis]: ops that work on rows take any number of leading axes.
Tensor rows_view(std::string_view op, std::string_view argument, const py::object& object);
// The same array seen as [T, -1, last axis]: ops that know a token from its heads. [T, d] has one head.
Tensor tokens_view(std::string_view op, std::string_view argument, const py::object& object);

// Refuses an output whose axes before the last are not those of `like` (less its last `dropped`): merged into rows,
// [6, 8] and [3, 2, 8] would both pass for [2, 3, 8]. The core checks the last axis.
void require_leading_axes(std::string_view op, std::string_view argument, const py::object& out, const py::object& like,
                          int dropped = 1);

py::array empty(DType dtype, std::initializer_list<std::int64_t> shape);
py::array empty_like(const py::object& array, DType dtype);
// `out` itself when given, else a new array.
py::object out_or_empty(const py::object& out, DType dtype, std::initializer_list<std::int64_t> shape);
py::object out_or_empty_like(const py::object& out, const py::object& array, DType dtype);

Validate parse_validate(std::string_view op, const std::string& text);

// Called by every bind_<family>.cpp; declared by the generated register_families.h.
template <class F>
void without_gil(F&& f) {
  py::gil_scoped_release release;
  f();
}

}  // namespace sparsespan::bindings
