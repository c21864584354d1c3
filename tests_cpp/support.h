#pragma once

// Shared by the C++ tests: owned tensors, seeded random data, bitwise comparison.

#include <cstring>
#include <random>
#include <vector>

#include "core/isa.h"
#include "core/tensor.h"

namespace sparsespan::test {

// A contiguous array that owns its data.
template <class T>
struct Array {
  std::vector<T> data;
  std::vector<std::int64_t> shape;

  explicit Array(std::vector<std::int64_t> extents, T fill = T{}) : shape(std::move(extents)) {
    std::int64_t n = 1;
    for (auto e : shape) n *= e;
    data.assign(static_cast<std::size_t>(n), fill);
  }
  Tensor tensor() {
    Tensor t;
    t.data = data.data();
    t.dtype = dtype_of<T>::value;
    t.rank = static_cast<int>(shape.size());
    std::int64_t stride = 1;
    for (int i = t.rank - 1; i >= 0; --i) {
      t.shape[i] = shape[i];
      t.strides[i] = stride;
      stride *= shape[i];
    }
    t.writable = true;
    t.present = true;
    return t;
  }
};

inline float as_float(float x) { return x; }
inline float as_float(BFloat16 x) { return to_float(x); }
inline float as_float(Float8E4M3 x) { return to_float(x); }

inline void assign(float& to, float x) { to = x; }
inline void assign(BFloat16& to, float x) { to = to_bfloat16(x); }
inline void assign(Float8E4M3& to, float x) { to = to_float8_e4m3(x); }

template <class T>
Array<T> random_array(std::vector<std::int64_t> shape, unsigned seed, float scale = 1.0F) {
  Array<T> a(std::move(shape));
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal(0.0F, scale);
  for (auto& x : a.data) assign(x, normal(engine));
  return a;
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

// Every level that this machine can run, the best one last.
inline std::vector<Isa> available_isas() {
  std::vector<Isa> isas;
  for (int i = 0; i < kIsaCount; ++i) {
    if (isa_refusal(static_cast<Isa>(i)).empty()) isas.push_back(static_cast<Isa>(i));
  }
  return isas;
}

// Caps the level for a scope.
class IsaScope {
 public:
  explicit IsaScope(Isa isa) : before_(max_isa()) { set_max_isa(isa); }
  ~IsaScope() { set_max_isa(before_); }
  IsaScope(const IsaScope&) = delete;
  IsaScope& operator=(const IsaScope&) = delete;

 private:
  Isa before_;
};

}  // namespace sparsespan::test
