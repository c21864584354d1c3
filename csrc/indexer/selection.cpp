#include "indexer/selection.h"

#include <algorithm>
#include <vector>

#include "core/parallel.h"
#include "indexer/segments.h"

namespace sparsespan::indexer {

namespace {

class Selector {
 public:
  Selector(const ScoreProblem& problem, const SelectionOutput& output)
      : p_(problem),
        o_(output),
        k_(output.out.shape[1]),
        groups_(static_cast<std::int64_t>(problem.groups.size())),
        segments_(problem, k_, output.threads),
        kept_(std::min(k_, segments_.widest())),
        capacity_(std::min(2 * k_, segments_.widest()) + problem.kernels->panel_keys),
        nans_(output.ranked.nan_columns) {}

  void run() {
    const std::int64_t tasks = groups_ * segments_.count();
    const std::int64_t floats = GroupScorer::scratch_size(p_);
    const std::int64_t words = round_up(kGroupRows * Candidates::words(capacity_), 16);
    const int team = team_size(tasks, o_.threads);
    const Scratch<float> staged(team * floats);
    const Scratch<std::uint32_t> held(team * words);
    const Scratch<std::uint32_t> survivors(segments_.count() == 1 ? 0 : p_.rows * survivor_words());
    std::vector<std::int64_t> counts(segments_.count() == 1 ? 0 : p_.rows * segments_.count());
    parallel_for(tasks, o_.threads, [&](std::int64_t task, int slot) {
      // From the last group: with causal windows it has the most to do.
      const std::int64_t which = groups_ - 1 - task / segments_.count();
      const RowGroup& group = p_.groups[which];
      const std::int64_t segment = task % segments_.count();
      std::vector<Candidates> best =
          scan(group, segments_.columns(which, segment), staged.data() + slot * floats, held.data() + slot * words);
      for (std::int64_t row = group.first; row < group.last; ++row) {
        Candidates& c = best[row - group.first];
        c.shrink(topk_kernels(), k_);
        if (segments_.count() == 1) {
          emit(c, row);
        } else {
          Candidates(survivors.data() + row * survivor_words() + segment * Candidates::words(kept_), kept_).append(c);
          counts[row * segments_.count() + segment] = c.count();
        }
      }
    });
    if (segments_.count() > 1) merge(survivors.data(), counts.data());
    if (o_.nan == NanRule::raise) nans_.refuse_any(o_.op, "q, k, weights", o_.out);
  }

 private:
  std::int64_t survivor_words() const { return segments_.count() * Candidates::words(kept_); }

  void emit(const Candidates& best, std::int64_t row) const {
    emit_row(best.columns(), best.count(), 0, o_.out.row(row), k_);
    if (o_.ranked.keys != nullptr) emit_keys(best, o_.ranked.keys + row * k_, k_);
  }

  // The candidates of the group's rows among `columns`.
  std::vector<Candidates> scan(const RowGroup& group, Window columns, float* staged, std::uint32_t* held) {
    std::vector<Candidates> best;
    std::vector<std::uint32_t> floors(group.last - group.first, 0);
    for (std::int64_t i = 0; i < group.last - group.first; ++i) {
      best.emplace_back(held + i * Candidates::words(capacity_), capacity_);
    }
    const TopkKernels& kernels = topk_kernels();
    GroupScorer(p_, staged).run(group, columns, [&](std::int64_t row, const float* scores, Window part) {
      Candidates& c = best[row - group.first];
      std::uint32_t& floor = floors[row - group.first];
      if (c.room() < part.size()) floor = c.shrink(topk_kernels(), k_) + 1;
      const std::int64_t nan = c.collect(kernels, scores, part.size(), floor, part.begin);
      if (nan >= 0) nans_.add(row, nan);
    });
    return best;
  }

  void merge(std::uint32_t* survivors, const std::int64_t* counts) {
    const std::int64_t room = segments_.count() * kept_;
    const Scratch<std::uint32_t> scratch(team_size(p_.rows, o_.threads) * Candidates::words(room));
    parallel_for(p_.rows, o_.threads, [&](std::int64_t row, int slot) {
      Candidates all(scratch.data() + slot * Candidates::words(room), room);
      for (std::int64_t segment = 0; segment < segments_.count(); ++segment) {
        all.append(Candidates(survivors + row * survivor_words() + segment * Candidates::words(kept_), kept_,
                              counts[row * segments_.count() + segment]));
      }
      all.shrink(topk_kernels(), k_);
      emit(all, row);
    });
  }

  const ScoreProblem& p_;
  const SelectionOutput& o_;
  std::int64_t k_;
  std::int64_t groups_;
  Segments segments_;
  std::int64_t kept_;      // candidates of one row that leave a segment, at most
  std::int64_t capacity_;  // candidates of one row inside a segment, at most
  NanReport nans_;
};

}  // namespace

void select_columns(ScoreProblem problem, const SelectionOutput& output) {
  // A window of up to k columns is taken whole; its scores matter only if a NaN among them has to be refused.
  const std::int64_t k = output.out.shape[1];
  std::vector<Window> whole(problem.rows);
  if (output.ranked.keys == nullptr && (output.nan == NanRule::lowest || output.validate == Validate::trusted)) {
    for (std::int64_t row = 0; row < problem.rows; ++row) {
      if (problem.windows[row].size() <= k) std::swap(whole[row], problem.windows[row]);
    }
  }
  Selector(problem, output).run();
  for (std::int64_t row = 0; row < problem.rows; ++row) {
    if (whole[row].size() > 0) emit_whole(whole[row].begin, whole[row].size(), output.out.row(row), k);
  }
}

}  // namespace sparsespan::indexer
