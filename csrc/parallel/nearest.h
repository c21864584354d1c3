#pragma once

// The mend of a refused size: the nearest numbers that would do.

#include <cstdint>
#include <string>

namespace sparsespan {

// The divisors of n nearest to d, below and above: nearest_divisors(8, 3) is "2 or 4".
inline std::string nearest_divisors(std::int64_t n, std::int64_t d) {
  std::int64_t below = 0;
  std::int64_t above = 0;
  for (std::int64_t a = 1; a <= n / a; ++a) {
    if (n % a != 0) continue;
    for (const std::int64_t x : {a, n / a}) {
      if (x <= d && x > below) below = x;
      if (x >= d && (above == 0 || x < above)) above = x;
    }
  }
  if (above == 0 || above == below) return std::to_string(below);
  return below == 0 ? std::to_string(above) : std::to_string(below) + " or " + std::to_string(above);
}

// The positive multiples of d nearest to n: nearest_multiples(8, 3) is "6 or 9".
inline std::string nearest_multiples(std::int64_t n, std::int64_t d) {
  const std::int64_t below = n / d * d;
  if (below == n && n > 0) return std::to_string(n);
  return (below > 0 ? std::to_string(below) + " or " : std::string()) + std::to_string(below + d);
}

}  // namespace sparsespan
