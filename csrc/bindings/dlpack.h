#pragma once

// The DLPack ABI, version 1.1, as much of it as CPU tensors need (https://dmlc.github.io/dlpack/latest/c_api.html).

#include <cstdint>

namespace sparsespan::bindings::dlpack {

struct Version {
  std::uint32_t major;
  std::uint32_t minor;
};

struct Device {
  std::int32_t type;  // 1 = CPU
  std::int32_t id;
};
inline constexpr std::int32_t kCpu = 1;

struct DataType {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};
inline constexpr std::uint8_t kInt = 0;
inline constexpr std::uint8_t kUInt = 1;
inline constexpr std::uint8_t kFloat = 2;
inline constexpr std::uint8_t kBfloat = 4;
inline constexpr std::uint8_t kBool = 6;
inline constexpr std::uint8_t kFloat8E4M3FN = 10;
inline constexpr std::uint8_t kFloat8E4M3FNUZ = 11;
inline constexpr std::uint8_t kFloat8E5M2 = 12;
inline constexpr std::uint8_t kFloat8E8M0FNU = 14;

struct Tensor {
  void* data;
  Device device;
  std::int32_t ndim;
  DataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements; null means C-contiguous (before 1.2)
  std::uint64_t byte_offset;
};

struct Managed {
  Tensor tensor;
  void* manager_context;
  void (*deleter)(Managed* self);
};

struct ManagedVersioned {
  Version version;
  void* manager_context;
  void (*deleter)(ManagedVersioned* self);
  std::uint64_t flags;
  Tensor tensor;
};
inline constexpr std::uint64_t kReadOnly = 1;

}  // namespace sparsespan::bindings::dlpack
