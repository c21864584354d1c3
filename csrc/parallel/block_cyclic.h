#pragma once

// The one owner map of the project: positions go round `ranks` ranks in runs of `block`.

#include <algorithm>
#include <cstdint>

namespace sparsespan {

struct BlockCyclic {
  std::int64_t block = 1;
  std::int64_t ranks = 1;

  std::int64_t span() const { return block * ranks; }
  // Position p >= 0: floor-mod is never asked what -1 is.
  std::int64_t owner(std::int64_t p) const { return p / block % ranks; }
  std::int64_t local(std::int64_t p) const { return p / span() * block + p % block; }
  std::int64_t logical(std::int64_t rank, std::int64_t l) const {
    return l / block * span() + rank * block + l % block;
  }
  // How many of the positions [0, length) rank owns. Monotone in length, so the keys that a query at position p
  // sees, itself included, are below(p + 1, rank).
  std::int64_t below(std::int64_t length, std::int64_t rank) const {
    const std::int64_t whole = length / span() * block;
    return whole + std::clamp<std::int64_t>(length - whole * ranks - rank * block, 0, block);
  }
};

}  // namespace sparsespan
