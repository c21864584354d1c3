#pragma once

// The engine under every op of the family that needs scores: which key rows a group of query rows sees, how a key is
// found (packed rows or a paged cache), and the loop over panels of keys.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/scratch.h"
#include "core/tensor.h"
#include "kernels/indexer.h"
#include "quant/layout.h"

namespace sparsespan::indexer {

// Columns [begin, end) that a row sees; empty rows are {0, 0}.
struct Window {
  std::int64_t begin = 0;
  std::int64_t end = 0;

  std::int64_t size() const { return end - begin; }
  Window clipped(Window to) const {
    const Window w{std::max(begin, to.begin), std::min(end, to.end)};
    return w.begin < w.end ? w : Window{};
  }
};

// Rows [first, last) share staged keys, so they share a request; their arithmetic stays apart.
struct RowGroup {
  std::int64_t first = 0;
  std::int64_t last = 0;
  std::int64_t request = 0;
};

inline constexpr std::int64_t kGroupRows = 16;

// Where key `s` of a request lies: row s of a packed array, or token s of a paged cache through its block table.
struct KeySource {
  Narrow type = Narrow::float32;
  const std::byte* rows = nullptr;
  std::int64_t row_bytes = 0;
  const float* scales = nullptr;  // [S]
  std::int64_t scale_stride = 0;
  bool paged = false;
  PagedCache cache;
  IntView<2> block_table;  // [B, max_blocks]

  bool scaled() const { return paged ? cache.layout == KvLayout::index_132 : scales != nullptr; }
  std::int64_t slot(std::int64_t request, std::int64_t s) const {
    return block_table(request, s / cache.page_size) * cache.page_size + s % cache.page_size;
  }
  // Where keys [first, first + n) begin, and their scales when they have any.
  void locate(std::int64_t request, std::int64_t first, std::int64_t n, const void** keys, float* key_scales) const;
  float scale(std::int64_t request, std::int64_t s) const;
};

struct ScoreProblem {
  std::int64_t rows = 0;   // T
  std::int64_t heads = 0;  // Hi
  std::int64_t dim = 0;    // D
  std::int64_t columns = 0;
  Narrow q_type = Narrow::float32;
  const std::byte* q = nullptr;  // [T, Hi, D], last axis contiguous
  std::int64_t q_row_bytes = 0;
  std::int64_t q_head_bytes = 0;
  TensorView<const float, 2> weights;  // [T, Hi]
  KeySource keys;
  std::vector<Window> windows;              // [T]
  std::vector<RowGroup> groups;             // cover [0, T) in order
  const IndexerKernels* kernels = nullptr;  // chosen last: it depends on the types of q and keys

  void choose_kernels() { kernels = &indexer_kernels(q_type != Narrow::float32 && keys.type != Narrow::float32); }
};

// Scores one group: queries are packed once, keys once per panel for all of its rows.
class GroupScorer {
 public:
  static std::int64_t scratch_size(const ScoreProblem& problem);
  GroupScorer(const ScoreProblem& problem, float* scratch);

  // consume(row, scores, columns): `scores` holds the row's scores of `columns`, which lie inside its window, in
  // ascending order of columns. Only keys inside some row's window are read.
  template <class Consume>
  void run(const RowGroup& group, Window columns, Consume&& consume) {
    const KernelScope scope(problem_.kernels->tiles);
    const std::int64_t panel = problem_.kernels->panel_keys;
    few_ = group.last - group.first <= kFewRows;
    const Window needed = load_queries(group, columns);
    for (std::int64_t start = needed.begin / panel * panel; start < needed.end; start += panel) {
      if (!load_panel(group, columns.clipped({start, start + panel}), start)) continue;
      prefetch(group, needed.clipped({start + panel, start + 2 * panel}));
      for (std::int64_t row = group.first; row < group.last; ++row) {
        const Window part = problem_.windows[row].clipped(columns.clipped({start, start + panel}));
        if (part.size() > 0) consume(row, score(group, row, part, start) + (part.begin - start), part);
      }
    }
  }

 private:
  Window load_queries(const RowGroup& group, Window columns);
  std::uint64_t seen_by_any(const RowGroup& group, Window columns, std::int64_t start) const;
  // Pages lie anywhere: no hardware sees the next one coming.
  void prefetch(const RowGroup& group, Window columns) const;
  bool load_panel(const RowGroup& group, Window columns, std::int64_t start);
  const float* score(const RowGroup& group, std::int64_t row, Window part, std::int64_t start);

  static constexpr std::int64_t kFewRows = 2;

  const ScoreProblem& problem_;
  std::int64_t query_floats_;
  bool few_ = false;  // hardly a row shares the packed keys
  float* queries_;    // [kGroupRows] packed
  float* panel_;
  float* scales_;  // [panel_keys]
  float* scores_;  // [panel_keys]
  float* zeros_;   // [D]: the row of a key that nobody may read
};

// Tasks = groups x chunks of columns, enough of them for every thread, long enough to amortise the decoding.
struct TaskGrid {
  std::int64_t groups = 0;
  std::int64_t chunks = 0;
  std::int64_t chunk_columns = 0;

  TaskGrid(const ScoreProblem& problem, int threads);
  std::int64_t tasks() const { return groups * chunks; }
  Window columns(std::int64_t task, std::int64_t limit) const {
    const std::int64_t begin = task % chunks * chunk_columns;
    return {begin, std::min(limit, begin + chunk_columns)};
  }
};

}  // namespace sparsespan::indexer
