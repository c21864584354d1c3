#include "indexer/logits.h"

#include <cstring>
#include <limits>

#include "core/parallel.h"

namespace sparsespan::indexer {

namespace {

// -inf in the part of `columns` that the row does not see.
void clean_row(float* row, Window columns, Window seen) {
  constexpr float kNone = -std::numeric_limits<float>::infinity();
  const Window inside = seen.clipped(columns);
  const std::int64_t stop = inside.size() == 0 ? columns.end : inside.begin;
  std::fill(row + columns.begin, row + stop, kNone);
  if (inside.size() != 0) std::fill(row + inside.end, row + columns.end, kNone);
}

}  // namespace

void write_logits(const ScoreProblem& problem, const LogitsOutput& o) {
  const TaskGrid grid(problem, o.threads);
  const std::int64_t each = GroupScorer::scratch_size(problem);
  const Scratch<float> scratch(team_size(grid.tasks(), o.threads) * each);
  parallel_for(grid.tasks(), o.threads, [&](std::int64_t task, int slot) {
    const RowGroup& group = problem.groups[task / grid.chunks];
    const Window columns = grid.columns(task, problem.columns);
    for (std::int64_t row = group.first; o.clean && row < group.last; ++row) {
      clean_row(o.out.row(row), columns, problem.windows[row]);
    }
    GroupScorer scorer(problem, scratch.data() + slot * each);
    scorer.run(group, columns, [&](std::int64_t row, const float* scores, Window part) {
      const std::int64_t shift = o.from_window_start ? problem.windows[row].begin : 0;
      std::memcpy(o.out.row(row) + part.begin - shift, scores, part.size() * sizeof(float));
    });
  });
}

}  // namespace sparsespan::indexer
