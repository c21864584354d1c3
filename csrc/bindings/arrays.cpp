#include "bindings/arrays.h"

#include <pybind11/gil_safe_call_once.h>

#include <algorithm>
#include <map>
#include <vector>

namespace sparsespan::bindings {

namespace {

// Type number -> DType. ml_dtypes' types get their numbers at import time, so the table is made at run time; never
// freed, because the interpreter may be gone when static destructors run. A plain static would deadlock: the import
// lets go of the GIL, and a second thread would wait for the static with the GIL held.
const std::map<int, DType>& dtype_table() {
  PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<std::map<int, DType>> storage;
  return storage
      .call_once_and_store_result([] {
        std::map<int, DType> table;
        for (int i = 1; i < static_cast<int>(DType::other); ++i) {
          const auto dtype = static_cast<DType>(i);
          table[numpy_dtype(dtype).num()] = dtype;
        }
        return table;
      })
      .get_stored();
}

bool is_ml_dtype(DType dtype) {
  return dtype == DType::bfloat16 || dtype == DType::float8_e4m3fn || dtype == DType::float8_e4m3fnuz ||
         dtype == DType::float8_e5m2 || dtype == DType::float8_e8m0fnu;
}

DType dtype_of_array(const py::array& array) {
  const auto found = dtype_table().find(array.dtype().num());
  if (found != dtype_table().end()) return found->second;
  // "long long" has its own number beside "long" where both have 64 bits.
  if (array.dtype().kind() == 'i' && array.itemsize() == 8) return DType::int64;
  return DType::other;
}

// What a pointer to the elements cannot show: swapped bytes would be read as other numbers, and a misaligned address is
// no address of a float.
void require_plain_memory(std::string_view op, std::string_view argument, const py::array& array) {
  const char order = array.dtype().byteorder();
  if (order != '=' && order != '|') {
    refuse_type(op, argument, "has elements in the other byte order ('", std::string(1, order),
                "'), needs native ones: array.astype(array.dtype.newbyteorder(\"=\"))");
  }
  if ((array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_) == 0) {
    refuse_value(op, argument, "starts at an address that is no multiple of its element size; copy it first");
  }
}

}  // namespace

py::dtype numpy_dtype(DType dtype) {
  const auto name = std::string(name_of(dtype));
  if (is_ml_dtype(dtype)) return py::dtype::from_args(py::module_::import("ml_dtypes").attr(name.c_str()));
  return py::dtype(name);
}

Tensor view(std::string_view op, std::string_view argument, const py::object& object) {
  Tensor t;
  if (object.is_none()) return t;
  if (!py::isinstance<py::array>(object)) {
    refuse_type(op, argument, "is a ", std::string(py::str(py::type::of(object).attr("__name__"))),
                ", needs a NumPy array or a DLPack tensor");
  }
  const auto array = py::reinterpret_borrow<py::array>(object);
  if (array.ndim() > Tensor::kMaxRank) {
    refuse_value(op, argument, "has ", array.ndim(), " axes, needs at most ", Tensor::kMaxRank);
  }
  require_plain_memory(op, argument, array);
  t.present = true;
  t.data = const_cast<void*>(array.data());
  t.dtype = dtype_of_array(array);
  const auto bytes = array.itemsize();
  if (bytes == 0) refuse_type(op, argument, "has elements of no bytes, needs an array of numbers");
  t.rank = static_cast<int>(array.ndim());
  t.writable = array.writeable();
  for (int i = 0; i < t.rank; ++i) {
    t.shape[i] = array.shape(i);
    if (array.strides(i) % bytes != 0) {
      refuse_value(op, argument, "has a stride of ", array.strides(i), " bytes, needs a multiple of its ", bytes,
                   "-byte elements");
    }
    t.strides[i] = array.strides(i) / bytes;
  }
  if (t.size() == 0) {  // NumPy gives an empty array strides of its own: call it contiguous, as it is
    for (std::int64_t stride = 1, i = t.rank - 1; i >= 0; --i) {
      t.strides[i] = stride;
      stride *= std::max<std::int64_t>(1, t.shape[i]);
    }
  }
  return t;
}

namespace {

// Axes [first, last) become one, without a copy: only axes that lie one behind the other are taken. No axis at all
// becomes an axis of extent 1.
Tensor merge_axes(std::string_view op, std::string_view argument, const Tensor& t, int first, int last) {
  std::int64_t extent = 1;
  std::int64_t stride = last < t.rank ? t.shape[last] : 1;
  for (int i = last - 1; i >= first; --i) {
    if (t.shape[i] == 1) continue;
    if (extent == 1) stride = t.strides[i];
    if (t.size() > 0 && t.strides[i] != stride * extent) {
      refuse_value(op, argument, "has leading axes that do not lie one behind the other; make it contiguous first");
    }
    extent *= t.shape[i];
  }
  Tensor merged = t;
  merged.rank = t.rank - (last - first) + 1;
  merged.shape[first] = extent;
  merged.strides[first] = stride;
  for (int i = last; i < t.rank; ++i) {
    merged.shape[first + 1 + i - last] = t.shape[i];
    merged.strides[first + 1 + i - last] = t.strides[i];
  }
  return merged;
}

}  // namespace

Tensor rows_view(std::string_view op, std::string_view argument, const py::object& object) {
  const Tensor t = view(op, argument, object);
  if (!t || t.rank == 2) return t;
  if (t.rank == 0) refuse_value(op, argument, "has no axes, needs at least one");
  return merge_axes(op, argument, t, 0, t.rank - 1);
}

Tensor tokens_view(std::string_view op, std::string_view argument, const py::object& object) {
  const Tensor t = view(op, argument, object);
  if (!t || t.rank == 3) return t;
  if (t.rank < 2) refuse_value(op, argument, "has shape ", t.shape_text(), ", needs [T, ..., d]");
  return merge_axes(op, argument, t, 1, t.rank - 1);
}

void require_leading_axes(std::string_view op, std::string_view argument, const py::object& out, const py::object& like,
                          int dropped) {
  const Tensor given = view(op, argument, out);
  const Tensor wanted = view(op, argument, like);
  if (!given || !wanted) return;
  const int axes = wanted.rank - dropped;
  if (axes == 1 && given.rank == 2) return;  // nothing to merge: the core says it better
  bool same = given.rank == axes + 1;
  for (int i = 0; i < axes; ++i) same = same && given.shape[i] == wanted.shape[i];
  if (same) return;
  std::string needs = "[";
  for (int i = 0; i < axes; ++i) needs += std::to_string(wanted.shape[i]) + ", ";
  refuse_value(op, argument, "has shape ", given.shape_text(), ", needs ", needs, "n]: the axes of the input");
}

py::array empty(DType dtype, std::initializer_list<std::int64_t> shape) {
  return py::array(numpy_dtype(dtype), std::vector<py::ssize_t>(shape.begin(), shape.end()));
}

py::array empty_like(const py::object& object, DType dtype) {
  const auto array = py::reinterpret_borrow<py::array>(object);
  return py::array(numpy_dtype(dtype), std::vector<py::ssize_t>(array.shape(), array.shape() + array.ndim()));
}

py::object out_or_empty(const py::object& out, DType dtype, std::initializer_list<std::int64_t> shape) {
  // A dtype that no op takes: the core refuses the input by name before it looks at the output.
  if (out.is_none() && (dtype == DType::none || dtype == DType::other)) return out;
  return out.is_none() ? py::object(empty(dtype, shape)) : out;
}

py::object out_or_empty_like(const py::object& out, const py::object& array, DType dtype) {
  // A dtype that no op takes: the core refuses the input by name before it looks at the output.
  if (out.is_none() && (dtype == DType::none || dtype == DType::other)) return out;
  return out.is_none() ? py::object(empty_like(array, dtype)) : out;
}

Validate parse_validate(std::string_view op, const std::string& text) {
  if (text == "full") return Validate::full;
  if (text == "trusted") return Validate::trusted;
  refuse_value(op, "validate", "is \"", text, "\", needs \"full\" or \"trusted\"");
}

}  // namespace sparsespan::bindings
