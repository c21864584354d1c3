#include "indexer/scores.h"

#include <bit>
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

void KeySource::locate(std::int64_t request, std::int64_t first, std::int64_t n, const void** keys,
                       float* key_scales) const {
  if (!paged) {
    for (std::int64_t j = 0; j < n; ++j) keys[j] = rows + (first + j) * row_bytes;
    for (std::int64_t j = 0; scaled() && j < n; ++j) key_scales[j] = scales[(first + j) * scale_stride];
    return;
  }
  for (std::int64_t j = 0; j < n;) {
    const std::int64_t token = (first + j) % cache.page_size;
    const std::int64_t run = std::min(n - j, cache.page_size - token);
    const std::int64_t at = slot(request, first + j);
    const std::byte* begin = cache.token(at);
    for (std::int64_t i = 0; i < run; ++i) keys[j + i] = begin + i * cache.token_stride;
    if (scaled()) std::memcpy(key_scales + j, cache.tail(at, sizeof(float)), run * sizeof(float));
    j += run;
  }
}

namespace {

std::int64_t query_floats(const ScoreProblem& p) { return round_up(p.kernels->query_floats(p.heads, p.dim), 16); }

}  // namespace

std::int64_t GroupScorer::scratch_size(const ScoreProblem& p) {
  return kGroupRows * query_floats(p) + round_up(p.kernels->panel_floats(p.heads, p.dim), 16) +
         2 * round_up(p.kernels->panel_keys, 16) + round_up(p.dim, 16);
}

GroupScorer::GroupScorer(const ScoreProblem& problem, float* scratch)
    : problem_(problem),
      query_floats_(query_floats(problem)),
      queries_(scratch),
      panel_(queries_ + kGroupRows * query_floats_),
      scales_(panel_ + round_up(problem.kernels->panel_floats(problem.heads, problem.dim), 16)),
      scores_(scales_ + round_up(problem.kernels->panel_keys, 16)),
      zeros_(scores_ + round_up(problem.kernels->panel_keys, 16)) {
  std::fill_n(zeros_, problem.dim, 0.0F);
}

// Returns the columns that some row of the group needs.
Window GroupScorer::load_queries(const RowGroup& group, Window columns) {
  Window needed;
  for (std::int64_t row = group.first; row < group.last; ++row) {
    const Window w = problem_.windows[row].clipped(columns);
    if (w.size() == 0) continue;
    needed = needed.size() == 0 ? w : Window{std::min(needed.begin, w.begin), std::max(needed.end, w.end)};
    problem_.kernels->pack_query(problem_.q + row * problem_.q_row_bytes, problem_.q_head_bytes, problem_.q_type,
                                 kE4M3Table.data(), problem_.heads, problem_.dim, few_,
                                 queries_ + (row - group.first) * query_floats_);
  }
  return needed;
}

// Rows go to the second level: the first one holds the packed panel and a row's queries, and nothing else fits.
void GroupScorer::prefetch(const RowGroup& group, Window columns) const {
  constexpr std::int64_t kLine = 64;
  const KeySource& keys = problem_.keys;
  if (!keys.paged) return;
  const PagedCache& cache = keys.cache;
  for (std::int64_t s = columns.begin; s < columns.end;) {
    const std::int64_t run = std::min(columns.end - s, cache.page_size - s % cache.page_size);
    const std::byte* begin = cache.token(keys.slot(group.request, s));
    for (std::int64_t i = 0; i < run * cache.token_stride; i += kLine) __builtin_prefetch(begin + i, 0, 2);
    if (keys.scaled()) {
      const std::byte* scales = cache.tail(keys.slot(group.request, s), sizeof(float));
      for (std::int64_t i = 0; i < run * 4; i += kLine) __builtin_prefetch(scales + i);
    }
    s += run;
  }
}

// Packs the keys of [start, start + panel) that lie in some row's window; false when there are none.
bool GroupScorer::load_panel(const RowGroup& group, Window columns, std::int64_t start) {
  constexpr int kMaxPanel = 256;
  constexpr int kWord = 64;
  const int panel = problem_.kernels->panel_keys;
  const void* rows[kMaxPanel];
  bool any = false;
  for (int first = 0; first < panel; first += kWord) {
    const int n = std::min(kWord, panel - first);
    std::fill_n(rows + first, n, zeros_);
    std::fill_n(scales_ + first, n, 0.0F);
    const std::uint64_t seen = seen_by_any(group, columns.clipped({start + first, start + first + n}), start + first);
    any = any || seen != 0;
    for (int j = 0; j < n && seen >> j != 0;) {
      j += std::countr_zero(seen >> j);
      const int run = std::countr_one(seen >> j);
      problem_.keys.locate(group.request, start + first + j, run, rows + first + j, scales_ + first + j);
      j += run;
      if (j >= kWord) break;
    }
  }
  if (any) problem_.kernels->pack(rows, problem_.keys.type, kE4M3Table.data(), problem_.dim, few_, panel_);
  return any;
}

// Bit j: some row of the group sees column start + j; `columns` are at most 64 from start.
std::uint64_t GroupScorer::seen_by_any(const RowGroup& group, Window columns, std::int64_t start) const {
  std::uint64_t seen = 0;
  for (std::int64_t row = group.first; row < group.last; ++row) {
    const Window w = problem_.windows[row].clipped(columns);
    if (w.size() > 0) seen |= (~std::uint64_t{0} >> (64 - w.size())) << (w.begin - start);
  }
  return seen;
}

const float* GroupScorer::score(const RowGroup& group, std::int64_t row, Window part, std::int64_t start) {
  problem_.kernels->score(queries_ + (row - group.first) * query_floats_, problem_.weights.row(row), problem_.heads,
                          problem_.dim, panel_, few_, problem_.keys.scaled() ? scales_ : nullptr,
                          static_cast<int>(part.begin - start), static_cast<int>(part.end - start), scores_);
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
