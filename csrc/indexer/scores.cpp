#include "indexer/scores.h"

#include <cstring>
#include <limits>

#include "core/parallel.h"

namespace sparsespan::indexer {

float KeySource::scale(std::int64_t request, std::int64_t s) const {
  if (!paged) return scales[s * scale_stride];
  float value = 0.0F;  // pages may start at any byte
  std::memcpy(&value, cache.tail(slot(request, s), sizeof value), sizeof value);
  return value;
}

std::int64_t GroupScorer::scratch_size(const ScoreProblem& p) {
  const std::int64_t panel = p.kernels->panel_keys;
  return round_up(kGroupRows * p.heads * p.dim, 16) + p.dim * panel + 2 * panel + round_up(p.dim, 16);
}

GroupScorer::GroupScorer(const ScoreProblem& problem, float* scratch)
    : problem_(problem),
      queries_(scratch),
      panel_(queries_ + round_up(kGroupRows * problem.heads * problem.dim, 16)),
      scales_(panel_ + problem.dim * problem.kernels->panel_keys),
      scores_(scales_ + problem.kernels->panel_keys),
      zeros_(scores_ + problem.kernels->panel_keys) {
  std::fill_n(zeros_, problem.dim, 0.0F);
}

// Returns the columns that some row of the group needs.
Window GroupScorer::load_queries(const RowGroup& group, Window columns) {
  Window needed;
  for (std::int64_t row = group.first; row < group.last; ++row) {
    const Window w = problem_.windows[row].clipped(columns);
    if (w.size() == 0) continue;
    needed = needed.size() == 0 ? w : Window{std::min(needed.begin, w.begin), std::max(needed.end, w.end)};
    for (std::int64_t h = 0; h < problem_.heads; ++h) {
      problem_.kernels->decode(problem_.q + row * problem_.q_row_bytes + h * problem_.q_head_bytes, problem_.q_type,
                               kE4M3Table.data(), problem_.dim,
                               queries_ + ((row - group.first) * problem_.heads + h) * problem_.dim);
    }
  }
  return needed;
}

// Packs the keys of [start, start + panel) that lie in some row's window; false when there are none.
bool GroupScorer::load_panel(const RowGroup& group, Window columns, std::int64_t start) {
  constexpr int kMaxPanel = 64;
  const int panel = problem_.kernels->panel_keys;
  std::uint64_t seen = 0;
  for (std::int64_t row = group.first; row < group.last; ++row) {
    const Window w = problem_.windows[row].clipped(columns);
    if (w.size() > 0) seen |= (~std::uint64_t{0} >> (kMaxPanel - w.size())) << (w.begin - start);
  }
  if (seen == 0) return false;
  const void* rows[kMaxPanel];
  const KeySource& keys = problem_.keys;
  for (int j = 0; j < panel; ++j) {
    const bool read = (seen >> j & 1U) != 0;
    rows[j] = read ? static_cast<const void*>(keys.key(group.request, start + j)) : zeros_;
    if (keys.scaled()) scales_[j] = read ? keys.scale(group.request, start + j) : 0.0F;
  }
  problem_.kernels->pack(rows, keys.type, kE4M3Table.data(), problem_.dim, panel_);
  return true;
}

const float* GroupScorer::score(const RowGroup& group, std::int64_t row) {
  problem_.kernels->score(queries_ + (row - group.first) * problem_.heads * problem_.dim, problem_.weights.row(row),
                          problem_.heads, problem_.dim, panel_, problem_.keys.scaled() ? scales_ : nullptr, scores_);
  return scores_;
}

TaskGrid::TaskGrid(const ScoreProblem& problem, int threads)
    : groups(static_cast<std::int64_t>(problem.groups.size())) {
  constexpr std::int64_t kMinColumns = 512;
  constexpr std::int64_t kMaxColumns = 8192;
  constexpr std::int64_t kTasksPerThread = 8;
  if (groups == 0 || problem.columns == 0) return;
  const std::int64_t team = team_size(std::numeric_limits<int>::max(), threads);
  const std::int64_t wanted = ceil_div(kTasksPerThread * team, groups);
  const std::int64_t even = std::clamp(ceil_div(problem.columns, wanted), kMinColumns, kMaxColumns);
  chunk_columns = round_up(even, problem.kernels->panel_keys);
  chunks = ceil_div(problem.columns, chunk_columns);
}

}  // namespace sparsespan::indexer
