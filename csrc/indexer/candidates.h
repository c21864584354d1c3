#pragma once

// Exact choice of the best k: the heart of topk and of select.

#include <atomic>
#include <cstdint>
#include <limits>
#include <string_view>

#include "core/tensor.h"
#include "kernels/topk.h"

namespace sparsespan::indexer {

// What NaN inside a window does: refuse the call, or rank below everything.
enum class NanRule : std::uint8_t { raise, lowest };

// Scored columns in ascending order of column, over memory of the caller. Order of choice: score descending, then
// column ascending.
class Candidates {
 public:
  // Memory for `capacity` entries as words of 32 bits.
  static std::int64_t words(std::int64_t capacity) { return 2 * capacity; }
  Candidates(std::uint32_t* memory, std::int64_t capacity, std::int64_t count = 0)
      : keys_(memory),
        columns_(reinterpret_cast<std::int32_t*>(memory + capacity)),
        capacity_(capacity),
        count_(count) {}

  std::int64_t count() const { return count_; }
  std::int64_t room() const { return capacity_ - count_; }
  const std::int32_t* columns() const { return columns_; }
  const std::uint32_t* keys() const { return keys_; }  // order like the scores; NaN is 1, no score is 0
  void clear() { count_ = 0; }

  // Takes scores of the columns first, first + 1, ... whose key is at least `floor`; they must fit. Of those equal to
  // it the first `most_ties` are enough. Returns the first NaN column, or -1.
  std::int64_t collect(const TopkKernels& kernels, const float* scores, std::int64_t n, std::uint32_t floor,
                       std::int64_t first, std::int64_t most_ties = std::numeric_limits<std::int64_t>::max()) {
    std::int64_t nan = -1;
    count_ += kernels.collect(scores, n, floor, most_ties, static_cast<std::int32_t>(first), keys_ + count_,
                              columns_ + count_, &nan);
    return nan;
  }
  // All of another one's, which lie behind these.
  void append(const Candidates& other);
  // Keeps the best k and returns the key of the last of them, 0 when no more than k are there and nothing went.
  // `floor`: no key here is below it.
  std::uint32_t shrink(const TopkKernels& kernels, std::int64_t k, std::uint32_t floor = 0);
  // The best column first.
  void sort_by_score();

 private:
  std::uint32_t* keys_;
  std::int32_t* columns_;
  std::int64_t capacity_;
  std::int64_t count_;
};

// The k best of some keys are those with a greater key and `ties` of those with this one.
struct Cut {
  std::uint32_t key;
  std::int64_t ties;
};
Cut find_cut(const TopkKernels& kernels, const std::uint32_t* keys, std::int64_t n, std::int64_t k);  // 1 <= k <= n

// A floor that about k scores pass, or a few more, guessed from a sample: 0 when a guess is not worth it. `sample`
// holds kSample words.
inline constexpr std::int64_t kSample = 2048;
std::uint32_t guess_floor(const TopkKernels& kernels, const float* scores, std::int64_t n, std::int64_t k,
                          std::uint32_t* sample);

// What an exchange between ranks needs beside a row's columns. Memory of the caller, or null: not wanted.
struct Ranked {
  std::uint32_t* keys = nullptr;        // [T, k] the keys of the columns, then 0
  std::int64_t* nan_columns = nullptr;  // [T] filled with -1: becomes a row's first NaN column; no refusal then
};

// The NaN with the lowest row, then column, whoever finds it first.
class NanReport {
 public:
  explicit NanReport(std::int64_t* by_row = nullptr) : by_row_(by_row) {}
  void add(std::int64_t row, std::int64_t column) {
    if (by_row_ != nullptr) {
      const std::atomic_ref<std::int64_t> first(by_row_[row]);
      std::int64_t known = first.load();
      while ((known < 0 || column < known) && !first.compare_exchange_weak(known, column)) {
      }
      return;
    }
    const auto found = static_cast<std::uint64_t>(row) << 32 | static_cast<std::uint64_t>(column);
    std::uint64_t known = first_.load();
    while (found < known && !first_.compare_exchange_weak(known, found)) {
    }
  }
  // Fills `out` with -1 and refuses when there was one.
  void refuse_any(std::string_view op, std::string_view argument, const TensorView<std::int32_t, 2>& out) const;

 private:
  static constexpr std::uint64_t kNone = ~std::uint64_t{0};
  std::int64_t* by_row_;
  std::atomic<std::uint64_t> first_{kNone};
};

// Row of an index output: n columns minus `shift`, then -1.
void emit_row(const std::int32_t* columns, std::int64_t n, std::int64_t shift, std::int32_t* out, std::int64_t k);
// The same for the columns begin, begin + 1, ... themselves: a window that is taken whole.
void emit_whole(std::int64_t begin, std::int64_t n, std::int32_t* out, std::int64_t k);
// Row of a key output: the keys of the columns, then 0.
void emit_keys(const Candidates& row, std::uint32_t* out, std::int64_t k);

}  // namespace sparsespan::indexer
