#include "comm/reduce.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

namespace sparsespan {

namespace {

constexpr std::int64_t kBlock = 2048;  // elements: two blocks stay in the first-level cache

template <class T>
using Sum = std::conditional_t<std::is_same_v<T, BFloat16>, float, T>;

template <class T>
Sum<T> widen(T value) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    return to_float(value);
  } else {
    return value;
  }
}

template <class T>
T add(T a, T b) {
  if constexpr (std::is_integral_v<T>) {  // integers wrap around, as in NumPy
    using U = std::make_unsigned_t<T>;
    return static_cast<T>(static_cast<U>(a) + static_cast<U>(b));
  } else {
    return a + b;
  }
}

template <class T>
T larger(T a, T b) {
  return a < b || b != b ? b : a;
}

template <class T>
void reduce_block(Reduce reduce, const std::vector<const std::byte*>& parts, T* out, std::int64_t begin,
                  std::int64_t count) {
  Sum<T> sum[kBlock];
  const auto part = [&](std::size_t r) { return reinterpret_cast<const T*>(parts[r]) + begin; };
  for (std::int64_t i = 0; i < count; ++i) sum[i] = widen(part(0)[i]);
  for (std::size_t r = 1; r < parts.size(); ++r) {
    const T* in = part(r);
    if (reduce == Reduce::sum) {
      for (std::int64_t i = 0; i < count; ++i) sum[i] = add(sum[i], widen(in[i]));
    } else {
      for (std::int64_t i = 0; i < count; ++i) sum[i] = larger(sum[i], widen(in[i]));
    }
  }
  for (std::int64_t i = 0; i < count; ++i) {
    if constexpr (std::is_same_v<T, BFloat16>) {
      out[begin + i] = to_bfloat16(sum[i]);
    } else {
      out[begin + i] = sum[i];
    }
  }
}

template <class T>
void reduce_all(Reduce reduce, const std::vector<const std::byte*>& parts, std::byte* out, std::int64_t bytes) {
  const std::int64_t count = bytes / static_cast<std::int64_t>(sizeof(T));
  for (std::int64_t i = 0; i < count; i += kBlock) {
    reduce_block(reduce, parts, reinterpret_cast<T*>(out), i, std::min(kBlock, count - i));
  }
}

}  // namespace

void reduce_in_order(DType dtype, Reduce reduce, const std::vector<const std::byte*>& parts, std::byte* out,
                     std::int64_t bytes) {
  if (dtype == DType::float32) return reduce_all<float>(reduce, parts, out, bytes);
  if (dtype == DType::float64) return reduce_all<double>(reduce, parts, out, bytes);
  if (dtype == DType::bfloat16) return reduce_all<BFloat16>(reduce, parts, out, bytes);
  if (dtype == DType::int32) return reduce_all<std::int32_t>(reduce, parts, out, bytes);
  if (dtype == DType::int64) return reduce_all<std::int64_t>(reduce, parts, out, bytes);
  throw comm_error("reduce: no sum of " + std::string(name_of(dtype)));
}

}  // namespace sparsespan
