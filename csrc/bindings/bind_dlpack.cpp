// DLPack in (any producer's capsule becomes a NumPy array over the same memory) and out (a NumPy array, bfloat16 and
// float8 included, becomes a capsule): NumPy itself exports neither of those types.

#include <memory>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/dlpack.h"

namespace sparsespan::bindings {

namespace {

struct TypeCode {
  DType dtype;
  std::uint8_t code;
};

constexpr TypeCode kCodes[] = {
    {DType::float32, dlpack::kFloat},
    {DType::float64, dlpack::kFloat},
    {DType::float16, dlpack::kFloat},
    {DType::bfloat16, dlpack::kBfloat},
    {DType::float8_e4m3fn, dlpack::kFloat8E4M3FN},
    {DType::float8_e4m3fnuz, dlpack::kFloat8E4M3FNUZ},
    {DType::float8_e5m2, dlpack::kFloat8E5M2},
    {DType::float8_e8m0fnu, dlpack::kFloat8E8M0FNU},
    {DType::bool8, dlpack::kBool},
    {DType::uint8, dlpack::kUInt},
    {DType::int8, dlpack::kInt},
    {DType::uint16, dlpack::kUInt},
    {DType::int16, dlpack::kInt},
    {DType::uint32, dlpack::kUInt},
    {DType::int32, dlpack::kInt},
    {DType::uint64, dlpack::kUInt},
    {DType::int64, dlpack::kInt},
};

DType to_dtype(dlpack::DataType type) {
  for (const auto& known : kCodes) {
    if (known.code == type.code && size_of(known.dtype) * 8 == type.bits && type.lanes == 1) return known.dtype;
  }
  refuse_type("from_dlpack", "tensor", "has DLPack type code ", int{type.code}, " with ", int{type.bits},
              " bits, needs a float, bfloat16, float8, integer or bool type");
}

py::array wrap(const dlpack::Tensor& t, const py::capsule& owner, bool read_only) {
  if (t.device.type != dlpack::kCpu) {
    refuse_value("from_dlpack", "tensor", "lies on DLPack device type ", t.device.type,
                 ", needs host memory (1); move it with .cpu() first");
  }
  const DType dtype = to_dtype(t.dtype);
  const std::int64_t bytes = size_of(dtype);
  std::vector<py::ssize_t> shape(t.shape, t.shape + t.ndim);
  std::vector<py::ssize_t> strides(t.ndim);
  std::int64_t expected = bytes;
  for (int i = t.ndim - 1; i >= 0; --i) {
    strides[i] = t.strides == nullptr ? expected : t.strides[i] * bytes;
    expected *= shape[i];
  }
  py::array array(numpy_dtype(dtype), shape, strides, static_cast<char*>(t.data) + t.byte_offset, owner);
  if (read_only) array.attr("setflags")(py::arg("write") = false);
  return array;
}

template <class M>
py::array take(const py::capsule& capsule, const char* name, const char* used_name, bool read_only) {
  auto* managed = static_cast<M*>(PyCapsule_GetPointer(capsule.ptr(), name));
  PyCapsule_SetName(capsule.ptr(), used_name);
  const py::capsule owner(managed, [](void* p) {
    auto* m = static_cast<M*>(p);
    if (m->deleter != nullptr) m->deleter(m);
  });
  return wrap(managed->tensor, owner, read_only);
}

py::array from_capsule(const py::capsule& capsule) {
  const std::string name = capsule.name() == nullptr ? "" : capsule.name();
  if (name == "dltensor") return take<dlpack::Managed>(capsule, "dltensor", "used_dltensor", false);
  if (name != "dltensor_versioned") {
    refuse_type("from_dlpack", "capsule", "is named \"", name, "\", needs an unused DLPack capsule");
  }
  auto* managed = static_cast<dlpack::ManagedVersioned*>(PyCapsule_GetPointer(capsule.ptr(), name.c_str()));
  if (managed->version.major != 1) {
    refuse_value("from_dlpack", "tensor", "uses DLPack version ", managed->version.major, ", needs version 1");
  }
  return take<dlpack::ManagedVersioned>(capsule, "dltensor_versioned", "used_dltensor_versioned",
                                        (managed->flags & dlpack::kReadOnly) != 0);
}

// What an exported capsule keeps alive.
struct Export {
  py::object array;
  std::vector<std::int64_t> shape;
  std::vector<std::int64_t> strides;
  dlpack::Managed managed{};
};

void delete_export(dlpack::Managed* managed) {
  const py::gil_scoped_acquire acquire;
  delete static_cast<Export*>(managed->manager_context);
}

py::capsule to_capsule(const py::array& array) {
  const Tensor t = view("to_dlpack", "array", array);
  auto owned = std::make_unique<Export>();
  owned->array = array;
  owned->shape.assign(t.shape.begin(), t.shape.begin() + t.rank);
  owned->strides.assign(t.strides.begin(), t.strides.begin() + t.rank);
  dlpack::Tensor& out = owned->managed.tensor;
  out.data = t.data;
  out.device = {dlpack::kCpu, 0};
  out.ndim = t.rank;
  for (const auto& known : kCodes) {
    if (known.dtype == t.dtype) out.dtype = {known.code, static_cast<std::uint8_t>(size_of(t.dtype) * 8), 1};
  }
  out.shape = owned->shape.data();
  out.strides = owned->strides.data();
  owned->managed.manager_context = owned.get();
  owned->managed.deleter = delete_export;
  auto* managed = &owned.release()->managed;
  return py::capsule(managed, "dltensor", [](PyObject* capsule) {
    if (PyCapsule_IsValid(capsule, "dltensor") == 0) return;  // taken by a consumer
    auto* m = static_cast<dlpack::Managed*>(PyCapsule_GetPointer(capsule, "dltensor"));
    m->deleter(m);
  });
}

}  // namespace

void register_dlpack(py::module_& parent) {
  auto m = parent.def_submodule("dlpack");
  m.def("from_capsule", &from_capsule, py::arg("capsule"));
  m.def("to_capsule", &to_capsule, py::arg("array"));
}

}  // namespace sparsespan::bindings
