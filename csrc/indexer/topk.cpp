#include "indexer/topk.h"

#include "core/parallel.h"
#include "core/scratch.h"
#include "indexer/check.h"

namespace sparsespan {

namespace {

using indexer::Candidates;
using indexer::Window;

constexpr std::string_view kOp = "topk";

std::int64_t row_value(const Tensor& t, std::int64_t row, std::int64_t otherwise) {
  return t ? IntView<1>(t)(row) : otherwise;
}

std::vector<Window> require_windows(const TopkParams& p) {
  const std::int64_t rows = p.scores.shape[0];
  const std::int64_t columns = p.scores.shape[1];
  for (const auto& [name, t] : {std::pair{"lengths", &p.lengths}, std::pair{"row_starts", &p.row_starts}}) {
    if (!*t) continue;
    require_int(kOp, name, *t);
    require_shape(kOp, name, *t, {rows}, "[T]");
  }
  std::vector<Window> windows(rows);
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int64_t start = row_value(p.row_starts, row, 0);
    if (start < 0 || start > columns) {
      refuse_value(kOp, "row_starts", "has ", start, " at row ", row, ", needs 0 <= start <= S = ", columns);
    }
    const std::int64_t length = row_value(p.lengths, row, columns - start);
    if (length < 0 || length > columns - start) {
      refuse_value(kOp, "lengths", "has ", length, " at row ", row,
                   ", needs 0 <= length <= S - start = ", columns - start);
    }
    windows[row] = {start, start + length};
  }
  return windows;
}

std::vector<Window> validate(const TopkParams& p) {
  require_dtype(kOp, "scores", p.scores, {DType::float32});
  require_shape(kOp, "scores", p.scores, {kAny, kAny}, "[T, S]");
  require_inner_contiguous(kOp, "scores", p.scores);
  indexer::require_int32_columns(kOp, "scores", p.scores.shape[1]);
  if (p.k < 1) refuse_value(kOp, "k", "is ", p.k, ", needs at least 1");
  auto windows = require_windows(p);
  require_output(kOp, "out", p.out, DType::int32, {p.scores.shape[0], p.k}, "[T, k]",
                 {&p.scores, &p.lengths, &p.row_starts});
  return windows;
}

// One row; `sample` holds indexer::kSample words. Returns the first NaN column, or -1.
std::int64_t choose(const TopkParams& p, const TopkKernels& kernels, const float* scores, Window w,
                    std::uint32_t* sample, Candidates& best) {
  const float* first = scores + w.begin;
  std::uint32_t floor = indexer::guess_floor(kernels, first, w.size(), p.k, sample);
  std::int64_t nan = best.collect(kernels, first, w.size(), floor, w.begin, p.k);
  if (floor != 0 && best.count() < p.k) {  // the sample misled: look at everything
    floor = 0;
    best.clear();
    nan = best.collect(kernels, first, w.size(), floor, w.begin);
  }
  best.shrink(kernels, p.k, floor);
  if (p.by_score) best.sort_by_score();
  return nan;
}

}  // namespace

void topk(const TopkParams& p) {
  const auto windows = validate(p);
  const auto scores = p.scores.as<const float, 2>();
  const auto out = p.out.as<std::int32_t, 2>();
  std::int64_t longest = 0;
  for (const Window w : windows) longest = std::max(longest, w.size());
  const bool look =
      p.by_score || p.ranked.keys != nullptr || (p.nan == indexer::NanRule::raise && p.validate == Validate::full);
  const std::int64_t rows = scores.shape[0];
  const std::int64_t rows_per_task = std::max<std::int64_t>(1, 16384 / std::max<std::int64_t>(1, longest));
  const std::int64_t tasks = ceil_div(rows, rows_per_task);
  const std::int64_t each = round_up(Candidates::words(longest) + indexer::kSample, 16);
  const Scratch<std::uint32_t> scratch(team_size(tasks, p.threads) * each);
  const TopkKernels& kernels = topk_kernels();
  indexer::NanReport nans(p.ranked.nan_columns);
  parallel_for(tasks, p.threads, [&](std::int64_t task, int slot) {
    std::uint32_t* sample = scratch.data() + slot * each;
    for (std::int64_t row = task * rows_per_task; row < std::min(rows, (task + 1) * rows_per_task); ++row) {
      const Window w = windows[row];
      const std::int64_t shift = p.from_row_start ? w.begin : 0;
      if (w.size() <= p.k && !look) {
        indexer::emit_whole(w.begin - shift, w.size(), out.row(row), p.k);
        continue;
      }
      Candidates best(sample + indexer::kSample, longest);
      const std::int64_t nan = choose(p, kernels, scores.row(row), w, sample, best);
      if (nan >= 0 && p.nan == indexer::NanRule::raise) nans.add(row, nan);
      indexer::emit_row(best.columns(), best.count(), shift, out.row(row), p.k);
      if (p.ranked.keys != nullptr) indexer::emit_keys(best, p.ranked.keys + row * p.k, p.k);
    }
  });
  nans.refuse_any(kOp, "scores", out);
}

}  // namespace sparsespan
