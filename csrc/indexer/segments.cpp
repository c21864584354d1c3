#include "indexer/segments.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "core/parallel.h"

namespace sparsespan::indexer {

namespace {

Window seen_by(const ScoreProblem& p, const RowGroup& group) {
  Window all;
  for (std::int64_t row = group.first; row < group.last; ++row) {
    const Window w = p.windows[row];
    if (w.size() > 0) all = all.size() == 0 ? w : Window{std::min(all.begin, w.begin), std::max(all.end, w.end)};
  }
  return all;
}

// Counts a group's scores column by column, but in as many steps as there are ends of windows.
class Progress {
 public:
  Progress(const ScoreProblem& p, const RowGroup& group) {
    for (std::int64_t row = group.first; row < group.last; ++row) {
      const Window w = p.windows[row];
      if (w.size() == 0) continue;
      scores_ += w.size();
      steps_.insert(steps_.end(), {{w.begin, 1}, {w.end, -1}});
    }
    std::sort(steps_.begin(), steps_.end());
    if (!steps_.empty()) at_ = steps_.front().first;
  }

  std::int64_t scores() const { return scores_; }
  // The column before which `wanted` scores lie; asked for in ascending order.
  std::int64_t column_of(std::int64_t wanted) {
    for (; next_ < steps_.size() && passed_ + (steps_[next_].first - at_) * rows_ <= wanted; ++next_) {
      passed_ += (steps_[next_].first - at_) * rows_;
      at_ = steps_[next_].first;
      rows_ += steps_[next_].second;
    }
    return at_ + (rows_ > 0 ? (wanted - passed_) / rows_ : 0);
  }

 private:
  std::vector<std::pair<std::int64_t, int>> steps_;  // column, change of how many rows see it
  std::int64_t scores_ = 0;
  std::size_t next_ = 0;
  std::int64_t at_ = 0;
  std::int64_t rows_ = 0;
  std::int64_t passed_ = 0;
};

}  // namespace

Segments::Segments(const ScoreProblem& p, std::int64_t k, int threads) {
  constexpr std::int64_t kTasksPerThread = 4;
  constexpr std::int64_t kCheap = 2048;  // columns from which on a segment's own choice costs little
  constexpr std::int64_t kLeast = 512;   // columns that are worth a thread of their own
  const auto groups = static_cast<std::int64_t>(p.groups.size());
  const std::int64_t team = team_size(std::numeric_limits<int>::max(), threads);
  std::int64_t most = 0;
  for (const RowGroup& group : p.groups) most = std::max(most, seen_by(p, group).size());
  if (groups > 0 && team > 1) {
    const std::int64_t cheap = most / std::max(kCheap, 2 * k);
    const std::int64_t needed = std::min(ceil_div(team, groups), most / kLeast);  // or threads have nothing to do
    const std::int64_t useful = std::max<std::int64_t>({1, cheap, needed});
    count_ = std::min(ceil_div(kTasksPerThread * team, groups), useful);
  }
  for (const RowGroup& group : p.groups) cut(p, group);
}

// Appends the group's bounds: where the count of scores passes the next part of their sum.
void Segments::cut(const ScoreProblem& p, const RowGroup& group) {
  const Window all = seen_by(p, group);
  Progress progress(p, group);
  bounds_.push_back(all.begin);
  for (std::int64_t segment = 1; segment <= count_; ++segment) {
    const std::int64_t exact = progress.column_of(progress.scores() / count_ * segment);
    const std::int64_t border = std::clamp(round_up(exact, p.kernels->panel_keys), bounds_.back(), all.end);
    bounds_.push_back(segment == count_ ? all.end : border);
    widest_ = std::max(widest_, bounds_.back() - bounds_[bounds_.size() - 2]);
  }
}

}  // namespace sparsespan::indexer
