#pragma once

// Refusals. Every message names the op, the argument, what it has and what it needs; where a mend is known,
// it follows. Python sees ValueError (std::invalid_argument), TypeError (type_error), IndexError
// (std::out_of_range).

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>

namespace sparsespan {

struct type_error : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

namespace detail {

template <class... Parts>
std::string join(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

}  // namespace detail

// refuse_value("topk", "k", "is 0", "needs at least 1") -> "topk: k is 0, needs at least 1"
template <class... Has>
[[noreturn]] void refuse_value(std::string_view op, std::string_view argument, const Has&... sentence) {
  throw std::invalid_argument(detail::join(op, ": ", argument, " ", sentence...));
}

template <class... Has>
[[noreturn]] void refuse_type(std::string_view op, std::string_view argument, const Has&... sentence) {
  throw type_error(detail::join(op, ": ", argument, " ", sentence...));
}

template <class... Has>
[[noreturn]] void refuse_index(std::string_view op, std::string_view argument, const Has&... sentence) {
  throw std::out_of_range(detail::join(op, ": ", argument, " ", sentence...));
}

// a * b in 64 bits, refused when it does not fit: sizes come from users.
inline std::int64_t checked_product(std::string_view op, std::string_view what, std::int64_t a, std::int64_t b) {
  std::int64_t product = 0;
  if (__builtin_mul_overflow(a, b, &product)) {
    refuse_value(op, what, "overflows 64 bits: ", a, " * ", b);
  }
  return product;
}

// How much of the data-dependent checking runs. Shapes and dtypes are always checked.
enum class Validate : std::uint8_t { full, trusted };

}  // namespace sparsespan
