#pragma once

#include "core/tensor.h"
#include "indexer/candidates.h"

namespace sparsespan {

struct TopkParams {
  Tensor scores;  // [T, S] float32
  std::int64_t k = 0;
  Tensor lengths;               // [T] int32 or int64, or not given: to the end of the row
  Tensor row_starts;            // [T], or not given: 0
  Tensor out;                   // [T, k] int32
  bool from_row_start = false;  // indices count from row_starts instead of column 0
  bool by_score = false;        // the best first, instead of ascending indices
  indexer::NanRule nan = indexer::NanRule::raise;
  indexer::Ranked ranked;
  Validate validate = Validate::full;
  int threads = 0;
};

// Row t: the k best of scores[t, start : start + length], total order (score descending, index ascending, -0.0 equal to
// +0.0), padded with -1.
void topk(const TopkParams& params);

}  // namespace sparsespan
