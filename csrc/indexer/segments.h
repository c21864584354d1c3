#pragma once

#include <cstdint>
#include <vector>

#include "indexer/scores.h"

namespace sparsespan::indexer {

// Tasks = groups x segments of columns. Several segments only where there are few groups: each keeps its own best k,
// and a second pass merges them. The segments of a group have the same number of scores, not of columns: with causal
// windows the first columns are seen by more rows.
class Segments {
 public:
  Segments(const ScoreProblem& problem, std::int64_t k, int threads);

  std::int64_t count() const { return count_; }
  // Borders between segments lie between panels; a group's first and last segment end where its rows' windows do.
  Window columns(std::int64_t group, std::int64_t segment) const {
    const std::int64_t* at = bounds_.data() + group * (count_ + 1) + segment;
    return {at[0], at[1]};
  }
  std::int64_t widest() const { return widest_; }  // columns of a segment, at most

 private:
  void cut(const ScoreProblem& problem, const RowGroup& group);

  std::int64_t count_ = 1;
  std::int64_t widest_ = 0;
  std::vector<std::int64_t> bounds_;  // [groups][count + 1]
};

}  // namespace sparsespan::indexer
