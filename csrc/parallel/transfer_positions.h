#pragma once

// Positions that a source class and a destination class share; a class is a rank of a block-cyclic layout.

#include <cstdint>
#include <functional>
#include <vector>

#include "core/tensor.h"
#include "parallel/block_cyclic.h"

namespace sparsespan {

// The positions of [start, stop) that `src_class` owns in `src` and `dst_class` owns in `dst`.
struct PositionSet {
  BlockCyclic src, dst;
  std::int64_t src_class = 0, dst_class = 0, start = 0, stop = 0;

  std::int64_t count() const;
  std::int64_t first() const;  // count() > 0
  std::int64_t last() const;   // count() > 0
  void each_run(const std::function<void(std::int64_t begin, std::int64_t end)>& visit) const;

 private:
  std::int64_t below(std::int64_t x) const;
  std::int64_t below_in_period(std::int64_t x) const;
  std::int64_t nth(std::int64_t n) const;
};

// Positions in ascending order: [count()].
std::vector<std::int64_t> positions_of(const PositionSet& set);

// Slot of each position in one rank's paged cache: table[local / page_size] * page_size + local % page_size.
struct TransferSlotsParams {
  PositionSet set;
  bool source = true;  // which side's layout, else the destination's
  Tensor table;        // [pages] int32 or int64: the request's page ids on that rank
  std::int64_t page_size = 1;
};
std::vector<std::int64_t> transfer_slots(const TransferSlotsParams& params);

// Least common multiple, refused when it does not fit 64 bits.
std::int64_t checked_lcm(std::string_view op, std::string_view what, std::int64_t a, std::int64_t b);

}  // namespace sparsespan
