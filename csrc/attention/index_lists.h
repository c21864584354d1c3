#pragma once

#include "attention/engine.h"
#include "core/tensor.h"

namespace sparsespan {

// Rows of indices, -1 = none, with what tells how far a row is read and to which DCP lane an index belongs.
class IndexLists {
 public:
  IndexLists(const Tensor& indices, const Tensor& topk_length, const Tensor& lane_of)
      : indices_(indices),
        length_(topk_length),
        lanes_(lane_of),
        has_length_(topk_length.present),
        has_lanes_(lane_of.present) {}

  // Row t's valid indices, in order; with lanes sorted by lane, the order within a lane kept.
  void compact(std::int64_t t, TileKeys& keys) const {
    const std::int64_t columns = has_length_ ? length_(t) : indices_.shape[1];
    keys.count = 0;
    for (int lane = 0; lane < (has_lanes_ ? kDcpLanes : 1); ++lane) {
      keys.lane_begin[lane] = keys.count;
      for (std::int64_t j = 0; j < columns; ++j) {
        const std::int64_t index = indices_(t, j);
        if (index != -1 && (!has_lanes_ || lanes_(t, j) == lane)) keys.list[keys.count++] = index;
      }
    }
    keys.lane_begin[kDcpLanes] = keys.count;
    keys.limits[0] = keys.count;
  }

 private:
  IntView<2> indices_;
  IntView<1> length_;
  IntView<2> lanes_;
  bool has_length_;
  bool has_lanes_;
};

}  // namespace sparsespan
