#include "pipeline/generate.h"

#include <algorithm>
#include <array>
#include <deque>
#include <string_view>

#include "core/check.h"

namespace sparsespan::pipeline {

namespace {

void require_sizes(std::string_view op, std::int64_t ranks, std::int64_t microbatches,
                   std::int64_t stages_per_rank = 1) {
  if (ranks < 1) refuse_value(op, "ranks", "is ", ranks, ", needs at least 1");
  if (microbatches < 1) refuse_value(op, "microbatches", "is ", microbatches, ", needs at least 1");
  if (stages_per_rank < 1) refuse_value(op, "stages_per_rank", "is ", stages_per_rank, ", needs at least 1");
  constexpr std::int64_t kMost = 100'000'000;
  const std::int64_t stages = checked_product(op, "ranks", ranks, stages_per_rank);
  if (checked_product(op, "microbatches", stages, microbatches) > kMost) {
    refuse_value(op, "microbatches", "is ", microbatches, ": the schedule would have more than ", kMost,
                 " forward passes");
  }
}

// One rank's list, written by kind and stage: the micro-batch numbers count up by themselves.
class Writer {
 public:
  // stages: what the digits of a pattern mean. limit: micro-batches from there on are left out.
  Writer(std::vector<std::int64_t> stages, std::int64_t limit)
      : stages_(std::move(stages)), limit_(limit), next_(stages_.size()) {}

  // A pattern is a row of cells: F0 (forward of stages[0]), B1, I0, W1, WQ (the oldest I that has no W yet; nothing
  // when there is none), F0+B1 (both at once).
  void repeat(std::int64_t times, std::string_view pattern) {
    for (std::int64_t i = 0; i < times; ++i) {
      for (std::size_t at = 0; at < pattern.size(); at = std::min(pattern.find(' ', at), pattern.size() - 1) + 1) {
        cell(pattern.substr(at, pattern.find(' ', at) - at));
      }
    }
  }
  void add(char kind, int local) { push(leaf(kind, local)); }
  void weight_of_oldest() {
    if (pending_.empty()) return;
    Action w = pending_.front();
    pending_.pop_front();
    w.kind = Kind::backward_weight;
    push(w);
  }
  bool owes() const { return !pending_.empty(); }
  std::vector<Action> take() { return std::move(list_); }

 private:
  void cell(std::string_view text) {
    if (text == "WQ") return weight_of_oldest();
    if (text.size() == 2) return add(text[0], text[1] - '0');
    Action pair;
    pair.kind = Kind::overlap;
    pair.parts = {leaf(text[0], text[1] - '0'), leaf(text[3], text[4] - '0')};
    list_.push_back(std::move(pair));
  }
  Action leaf(char kind, int local) {
    auto& count = next_[local];
    Action a;
    a.stage = static_cast<std::int32_t>(stages_[local]);
    a.kind = kind == 'F'   ? Kind::forward
             : kind == 'B' ? Kind::backward
             : kind == 'I' ? Kind::backward_input
                           : Kind::backward_weight;
    auto& n = count[kind == 'F' ? 0 : kind == 'W' ? 2 : 1];  // B and I share one count
    a.microbatch = static_cast<std::int32_t>(n++);
    if (kind == 'I') pending_.push_back(a);
    return a;
  }
  void push(Action a) {
    if (a.microbatch < limit_) list_.push_back(std::move(a));
  }

  std::vector<std::int64_t> stages_;
  std::int64_t limit_;
  std::vector<std::array<std::int64_t, 3>> next_;
  std::deque<Action> pending_;
  std::vector<Action> list_;
};

// Micro-batches advance in groups: a group visits all stages of a rank before the next group starts. Returns the size
// of a group.
std::int64_t group_size(std::string_view op, std::int64_t ranks, std::int64_t microbatches) {
  const std::int64_t rounds = std::max<std::int64_t>(1, microbatches / ranks);
  if (microbatches % rounds != 0) {
    refuse_value(op, "microbatches", "is ", microbatches, ", needs a multiple of the ", rounds, " rounds of ", ranks,
                 " ranks");
  }
  return microbatches / rounds;
}

// Warm-up, then forward and backward by turns, then the backwards that are left. `hop`: forwards in advance for each
// rank nearer to the start; weights_late < 0: whole backwards, else the W of a backward follows that many turns later.
std::vector<Action> interleaved_rank(std::int64_t rank, std::int64_t ranks, std::int64_t microbatches,
                                     std::int64_t per_rank, std::int64_t group, std::int64_t hop,
                                     std::int64_t weights_late) {
  std::vector<std::int64_t> stages;
  for (std::int64_t v = 0; v < per_rank; ++v) stages.push_back(v * ranks + rank);
  Writer out(std::move(stages), microbatches);
  const std::int64_t passes = per_rank * microbatches;
  const std::int64_t ahead = std::min(passes, (per_rank - 1) * group + hop * (ranks - 1 - rank));
  for (std::int64_t turn = 0; turn < passes + ahead; ++turn) {
    if (turn < passes) out.add('F', static_cast<int>(turn / group % per_rank));
    const std::int64_t back = turn - ahead;
    if (back < 0) continue;
    out.add(weights_late < 0 ? 'B' : 'I', static_cast<int>(per_rank - 1 - back / group % per_rank));
    if (weights_late >= 0 && back >= weights_late) out.weight_of_oldest();
  }
  while (out.owes()) out.weight_of_oldest();
  return out.take();
}

template <class F>
Schedule collect(std::int64_t ranks, std::int64_t stages, std::int64_t microbatches, F&& list_of) {
  std::vector<std::vector<Action>> lists;
  for (std::int64_t r = 0; r < ranks; ++r) lists.push_back(list_of(r));
  return make_schedule(std::move(lists), stages, microbatches, "train");
}

}  // namespace

Schedule gpipe(std::int64_t ranks, std::int64_t microbatches) {
  require_sizes("gpipe", ranks, microbatches);
  return collect(ranks, ranks, microbatches, [&](std::int64_t r) {
    Writer out({r}, microbatches);
    out.repeat(microbatches, "F0");
    out.repeat(microbatches, "B0");
    return out.take();
  });
}

Schedule one_f_one_b(std::int64_t ranks, std::int64_t microbatches) {
  require_sizes("one_f_one_b", ranks, microbatches);
  return collect(ranks, ranks, microbatches,
                 [&](std::int64_t r) { return interleaved_rank(r, ranks, microbatches, 1, microbatches, 1, -1); });
}

Schedule interleaved(std::int64_t ranks, std::int64_t microbatches, std::int64_t stages_per_rank) {
  require_sizes("interleaved", ranks, microbatches, stages_per_rank);
  const std::int64_t group = group_size("interleaved", ranks, microbatches);
  return collect(ranks, ranks * stages_per_rank, microbatches, [&](std::int64_t r) {
    return interleaved_rank(r, ranks, microbatches, stages_per_rank, group, 2, -1);
  });
}

Schedule zero_bubble_h1(std::int64_t ranks, std::int64_t microbatches, std::int64_t stages_per_rank) {
  require_sizes("zero_bubble", ranks, microbatches, stages_per_rank);
  const std::int64_t group = group_size("zero_bubble", ranks, microbatches);
  return collect(ranks, ranks * stages_per_rank, microbatches, [&](std::int64_t r) {
    return interleaved_rank(r, ranks, microbatches, stages_per_rank, group, 1, r);
  });
}

Schedule zero_bubble_v(std::int64_t ranks, std::int64_t microbatches) {
  require_sizes("zero_bubble", ranks, microbatches, 2);
  // The pattern is made for 2 * ranks - 1 micro-batches or more; of a shorter run the surplus is left out.
  const std::int64_t m = std::max(microbatches, 2 * ranks - 1);
  return collect(ranks, 2 * ranks, microbatches, [&](std::int64_t r) {
    Writer out({r, 2 * ranks - 1 - r}, microbatches);
    out.repeat(2 * (ranks - r) - 1, "F0");
    out.repeat(r, "F1 F0");
    out.repeat(ranks - r, "F1 I1 W1");
    // By now 2 * ranks - 1 - r forwards of the first stage and `ranks` of the second are done.
    out.repeat(m - (2 * ranks - 1 - r), "F0 I0 W0 F1 I1 W1");
    out.repeat(ranks - 1 - r, "I0 W0 F1 I1 W1");
    out.repeat(r, "I0 I1");
    out.repeat(ranks - r, "I0 W0");
    out.repeat(r, "W1");
    out.repeat(r, "W0");
    return out.take();
  });
}

Schedule dualpipe_v(std::int64_t ranks, std::int64_t microbatches) {
  require_sizes("dualpipe_v", ranks, microbatches, 2);
  if (microbatches < 2 * ranks) {
    refuse_value("dualpipe_v", "microbatches", "is ", microbatches, ", needs at least the ", 2 * ranks, " stages of ",
                 ranks, " ranks");
  }
  return collect(ranks, 2 * ranks, microbatches, [&](std::int64_t r) {
    const std::int64_t above = ranks - 1 - r;
    const std::int64_t steady = microbatches - 2 * ranks + r + 1;
    Writer out({r, 2 * ranks - 1 - r}, microbatches);
    out.repeat(2 * above, "F0");
    out.repeat(r + 1, "F0 F1");
    out.repeat(above, "I1 WQ F1");
    // On the last rank both stages meet: overlapping its first pair would only delay it.
    if (above == 0) {
      out.repeat(1, "F0 B1 F1+B0");
      out.repeat(steady - 1, "F0+B1 F1+B0");
    } else {
      out.repeat(steady, "F0+B1 F1+B0");
    }
    out.repeat(above, "B1 F1+B0");
    // The second half of the remaining backwards keeps its weight gradients for the end.
    const std::int64_t whole = (r + 1) / 2;
    out.repeat(whole, "B1 B0");
    if (r % 2 == 0) out.repeat(1, "B1 I0");
    out.repeat(r + 1 - whole - (r % 2 == 0 ? 1 : 0), "I1 I0");
    out.repeat(above, "WQ I0");
    out.repeat(r + 1, "WQ");
    return out.take();
  });
}

}  // namespace sparsespan::pipeline
