#pragma once

// Scratch of an op: allocated once in the core entry, before any thread starts, cut into one piece per slot.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace sparsespan {

// Uninitialised, 64-byte aligned, owned. `T` must be trivially constructible.
template <class T>
class Scratch {
 public:
  explicit Scratch(std::int64_t count)
      : count_(count),
        data_(count == 0 ? nullptr
                         : static_cast<T*>(::operator new(static_cast<std::size_t>(count) * sizeof(T), kAlign))) {}
  T* data() const { return data_.get(); }
  std::int64_t size() const { return count_; }

 private:
  static constexpr std::align_val_t kAlign{64};
  struct Free {
    void operator()(T* p) const { ::operator delete(p, kAlign); }
  };
  std::int64_t count_;
  std::unique_ptr<T, Free> data_;
};

constexpr std::int64_t round_up(std::int64_t n, std::int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

constexpr std::int64_t ceil_div(std::int64_t n, std::int64_t d) { return (n + d - 1) / d; }

}  // namespace sparsespan
