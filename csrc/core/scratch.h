#pragma once

// Scratch of an op: allocated once in the core entry, before any thread starts, cut into one piece per slot.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <type_traits>

namespace sparsespan {

// Uninitialised memory at a multiple of 64 bytes; throws std::bad_alloc. Large pieces begin at a multiple of 2 MiB, ask
// for huge pages and are kept for the next op when they come back (up to 64 MiB in all): an op that is over in a
// millisecond would else spend a good part of it on page faults.
void* take_scratch(std::size_t bytes);
void give_back_scratch(void* memory, std::size_t bytes) noexcept;

// Uninitialised, aligned, owned.
template <class T>
class Scratch {
  static_assert(std::is_trivially_default_constructible_v<T> && std::is_trivially_destructible_v<T>);

 public:
  explicit Scratch(std::int64_t count)
      : count_(count),
        data_(count == 0 ? nullptr : static_cast<T*>(take_scratch(static_cast<std::size_t>(count) * sizeof(T))),
              GiveBack{static_cast<std::size_t>(count) * sizeof(T)}) {}
  T* data() const { return data_.get(); }
  std::int64_t size() const { return count_; }

 private:
  struct GiveBack {
    std::size_t bytes;
    void operator()(T* p) const { give_back_scratch(p, bytes); }
  };
  std::int64_t count_;
  std::unique_ptr<T, GiveBack> data_;
};

constexpr std::int64_t round_up(std::int64_t n, std::int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

constexpr std::int64_t ceil_div(std::int64_t n, std::int64_t d) { return (n + d - 1) / d; }

}  // namespace sparsespan
