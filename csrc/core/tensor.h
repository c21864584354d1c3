#pragma once

// Views over memory that somebody else owns. `Tensor` is type-erased and travels in params structs;
// `TensorView<T, Rank>` is what the code behind validation works on. Neither ever owns or frees.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <type_traits>

#include "core/check.h"
#include "core/types.h"

namespace sparsespan {

enum class DType : std::uint8_t {
  none,
  float32,
  float64,
  float16,
  bfloat16,
  float8_e4m3fn,
  float8_e4m3fnuz,
  float8_e5m2,
  float8_e8m0fnu,
  bool8,
  uint8,
  int8,
  uint16,
  int16,
  uint32,
  int32,
  uint64,
  int64,
  other,
};

std::string_view name_of(DType dtype);
int size_of(DType dtype);  // bytes per element; 0 for none and other

template <class T>
struct dtype_of;
template <>
struct dtype_of<float> {
  static constexpr DType value = DType::float32;
};
template <>
struct dtype_of<double> {
  static constexpr DType value = DType::float64;
};
template <>
struct dtype_of<BFloat16> {
  static constexpr DType value = DType::bfloat16;
};
template <>
struct dtype_of<Float8E4M3> {
  static constexpr DType value = DType::float8_e4m3fn;
};
template <>
struct dtype_of<Float8E8M0> {
  static constexpr DType value = DType::float8_e8m0fnu;
};
template <>
struct dtype_of<std::uint8_t> {
  static constexpr DType value = DType::uint8;
};
template <>
struct dtype_of<std::int32_t> {
  static constexpr DType value = DType::int32;
};
template <>
struct dtype_of<std::int64_t> {
  static constexpr DType value = DType::int64;
};

template <class T, int Rank>
struct TensorView {
  T* data = nullptr;
  std::array<std::int64_t, Rank> shape{};
  std::array<std::int64_t, Rank> strides{};  // in elements

  std::int64_t size() const {
    std::int64_t n = 1;
    for (auto extent : shape) n *= extent;
    return n;
  }
  template <class... I>
  T& operator()(I... i) const {
    static_assert(sizeof...(I) == Rank);
    std::int64_t offset = 0;
    int axis = 0;
    ((offset += static_cast<std::int64_t>(i) * strides[axis++]), ...);
    return data[offset];
  }
  // The address of element [i..., 0, 0...]: one row or plane.
  template <class... I>
  T* row(I... i) const {
    static_assert(sizeof...(I) < Rank);
    std::int64_t offset = 0;
    int axis = 0;
    ((offset += static_cast<std::int64_t>(i) * strides[axis++]), ...);
    return data + offset;
  }
};

// A type-erased view. rank 0 with data == nullptr means "not given".
struct Tensor {
  static constexpr int kMaxRank = 5;
  void* data = nullptr;
  DType dtype = DType::none;
  int rank = 0;
  std::array<std::int64_t, kMaxRank> shape{};
  std::array<std::int64_t, kMaxRank> strides{};  // in elements
  bool writable = false;
  bool present = false;  // an empty array may have a null data pointer and still be given

  explicit operator bool() const { return present; }
  std::int64_t size() const {
    std::int64_t n = 1;
    for (int i = 0; i < rank; ++i) n *= shape[i];
    return n;
  }
  // The caller has checked dtype and rank.
  template <class T, int Rank>
  TensorView<T, Rank> as() const {
    TensorView<T, Rank> view;
    view.data = static_cast<T*>(data);
    std::copy_n(shape.begin(), Rank, view.shape.begin());
    std::copy_n(strides.begin(), Rank, view.strides.begin());
    return view;
  }
  // [first, last) byte addresses that the view touches.
  std::array<const std::byte*, 2> extent() const;
  std::string shape_text() const;  // "[4, 576]"
};

// Integer metadata (lengths, tables, ks, ke) may be int32 or int64; one virtual-free reader for both.
template <int Rank>
struct IntView {
  const void* data = nullptr;
  bool wide = false;
  std::array<std::int64_t, Rank> shape{};
  std::array<std::int64_t, Rank> strides{};

  IntView() = default;
  explicit IntView(const Tensor& t) : data(t.data), wide(t.dtype == DType::int64) {
    std::copy_n(t.shape.begin(), Rank, shape.begin());
    std::copy_n(t.strides.begin(), Rank, strides.begin());
  }
  template <class... I>
  std::int64_t operator()(I... i) const {
    static_assert(sizeof...(I) == Rank);
    std::int64_t offset = 0;
    int axis = 0;
    ((offset += static_cast<std::int64_t>(i) * strides[axis++]), ...);
    return wide ? static_cast<const std::int64_t*>(data)[offset] : static_cast<const std::int32_t*>(data)[offset];
  }
};

// Checks on one argument of one op. `kAny` leaves an extent free.
inline constexpr std::int64_t kAny = -1;

void require_dtype(std::string_view op, std::string_view argument, const Tensor& t,
                   std::initializer_list<DType> allowed);
// Rank and extents: `names` is what the reader sees, "[T, H, D]".
void require_shape(std::string_view op, std::string_view argument, const Tensor& t,
                   std::initializer_list<std::int64_t> extents, std::string_view names);
// The last axis is contiguous: kernels read whole rows.
void require_inner_contiguous(std::string_view op, std::string_view argument, const Tensor& t);
void require_contiguous(std::string_view op, std::string_view argument, const Tensor& t);
void require_int(std::string_view op, std::string_view argument, const Tensor& t);  // int32 or int64
// Memory that the op stores into: writable, no byte shared with any input.
void require_writable(std::string_view op, std::string_view argument, const Tensor& t,
                      std::initializer_list<const Tensor*> inputs);
// Output: dtype, exact shape, writable, last axis contiguous, no byte shared with any input.
void require_output(std::string_view op, std::string_view argument, const Tensor& out, DType dtype,
                    std::initializer_list<std::int64_t> extents, std::string_view names,
                    std::initializer_list<const Tensor*> inputs);

}  // namespace sparsespan
