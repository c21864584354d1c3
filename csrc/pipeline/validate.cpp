#include "pipeline/validate.h"

#include <algorithm>
#include <set>
#include <utility>

#include "core/check.h"

namespace sparsespan::pipeline {

namespace {

std::string quote(std::string_view words, const Schedule& s, std::int64_t rank, std::int64_t step) {
  return detail::join("validate: ", words, "\n", grid(s, rank, step));
}

std::string_view verb(Kind k) {
  switch (k) {
    case Kind::backward: return "backward";
    case Kind::backward_input: return "input backward";
    case Kind::backward_weight: return "weight backward";
    case Kind::sample: return "sample";
    default: return "forward";
  }
}

class Shape {
 public:
  Shape(const Schedule& s, const Rules& rules) : s_(s), rules_(rules) {}

  void check() {
    counts();
    std::int64_t leaves = 0;
    std::set<std::int64_t> seen;
    each([&](std::int64_t, std::int64_t, const Action&, const Action& a) { ++leaves, seen.insert(a.stage); });
    if (leaves == 0 && s_.microbatches == 0) return;  // no work, nothing to prove
    if (s_.stages > leaves) {                         // before any table of stages is allocated
      std::int64_t absent = 0;
      while (seen.count(absent) > 0) ++absent;
      throw schedule_error(quote(detail::join("stage ", absent, " stands on no rank"), s_, -1, -1));
    }
    home_.assign(static_cast<std::size_t>(s_.stages), -1);
    each([&](std::int64_t r, std::int64_t t, const Action& cell, const Action& leaf) { cell_rules(r, t, cell, leaf); });
    for (std::int64_t r = 0; r < ranks(); ++r) {
      for (std::size_t t = 0; t < s_.ranks[r].size(); ++t) container_rules(r, static_cast<std::int64_t>(t));
    }
    for (std::int64_t stage = 0; stage < s_.stages; ++stage) {
      if (home_[stage] < 0)
        throw schedule_error(quote(detail::join("stage ", stage, " stands on no rank"), s_, -1, -1));
    }
    if (s_.stages > 0 && s_.microbatches > leaves / s_.stages) first_missing();
    completeness();
  }

 private:
  std::int64_t ranks() const { return static_cast<std::int64_t>(s_.ranks.size()); }
  template <class F>
  void each(F&& f) const {
    for (std::int64_t r = 0; r < ranks(); ++r) {
      for (std::size_t t = 0; t < s_.ranks[r].size(); ++t) {
        for_each_leaf(s_.ranks[r][t], [&](const Action& a) { f(r, static_cast<std::int64_t>(t), s_.ranks[r][t], a); });
      }
    }
  }
  template <class... Words>
  [[noreturn]] void refuse(std::int64_t r, std::int64_t t, const Words&... words) const {
    refuse_cell(s_, r, t, detail::join(words...));
  }

  void counts() const {
    const auto differ = [&](std::string_view what, std::int64_t has, std::int64_t needs) {
      if (needs >= 0 && has != needs) {
        throw schedule_error(quote(detail::join("the schedule has ", has, " ", what, ", needs ", needs), s_, -1, -1));
      }
    };
    differ("ranks", ranks(), rules_.ranks);
    differ("stages", s_.stages, rules_.stages);
    differ("micro-batches", s_.microbatches, rules_.microbatches);
    if (ranks() == 0) throw schedule_error("validate: the schedule has no ranks");
  }

  void cell_rules(std::int64_t r, std::int64_t t, const Action&, const Action& a) {
    if (a.stage < 0 || a.stage >= s_.stages) {
      refuse(r, t, "stage ", a.stage, " is out of range, the schedule has ", s_.stages, " stages");
    }
    if (has_microbatch(a.kind) && (a.microbatch < 0 || a.microbatch >= s_.microbatches)) {
      refuse(r, t, "micro-batch ", a.microbatch, " is out of range, the schedule has ", s_.microbatches);
    }
    if (home_[a.stage] < 0) home_[a.stage] = r;
    if (home_[a.stage] != r) {
      refuse(r, t, "stage ", a.stage, " stands on rank ", home_[a.stage], " and on rank ", r, ", needs one");
    }
    const bool trains = is_backward(a.kind) || a.kind == Kind::backward_weight || a.kind == Kind::reduce_grad;
    const bool wrong = (trains && s_.mode != Mode::train) || (is_serving(a.kind) && s_.mode != Mode::serve) ||
                       (a.kind == Kind::forward && s_.mode == Mode::serve);
    if (wrong)
      refuse(r, t, "the kind ", name_of(a.kind), " does not belong into a schedule of mode ", name_of(s_.mode));
    message_rules(r, t, a);
    if (a.kind == Kind::sample && a.stage != s_.stages - 1) {
      refuse(r, t, "samples on stage ", a.stage, ", only the last stage, ", s_.stages - 1, ", has logits");
    }
  }

  void message_rules(std::int64_t r, std::int64_t t, const Action& a) const {
    const bool down = a.kind == Kind::send_b || a.kind == Kind::recv_f || a.kind == Kind::recv_x;
    const bool up = a.kind == Kind::send_f || a.kind == Kind::send_x || a.kind == Kind::recv_b;
    if (down && a.stage == 0) refuse(r, t, "stage 0 is the first, there is no stage before it");
    if (up && a.stage == s_.stages - 1) refuse(r, t, "stage ", a.stage, " is the last, there is no stage after it");
    if (a.kind == Kind::send_t && a.stage != s_.stages - 1) refuse(r, t, "tokens are sent by the last stage only");
    if (a.kind == Kind::recv_t && a.stage != 0) refuse(r, t, "tokens are received by stage 0 only");
  }

  void container_rules(std::int64_t r, std::int64_t t) const {
    const Action& c = s_.ranks[r][t];
    if (!is_container(c.kind)) return;
    if (c.parts.size() < 2) refuse(r, t, name_of(c.kind), " holds one part, needs two");
    if (c.kind == Kind::overlap && c.parts.size() > 2) {
      refuse(r, t, "OVERLAP_F_B holds ", c.parts.size(), " parts, needs a forward and a backward");
    }
    int forwards = 0;
    for (std::size_t i = 0; i < c.parts.size(); ++i) {
      const Action& part = c.parts[i];
      const bool belongs = c.kind == Kind::mixed ? part.kind == Kind::prefill || part.kind == Kind::decode
                                                 : part.kind == Kind::forward || is_backward(part.kind) ||
                                                       part.kind == Kind::backward_weight;
      if (!belongs) refuse(r, t, name_of(part.kind), " cannot be a part of ", name_of(c.kind));
      forwards += part.kind == Kind::forward ? 1 : 0;
      if (c.kind == Kind::mixed && part.stage != c.parts[0].stage) {
        refuse(r, t, "the parts of MIXED are one forward of one stage, but stand on stages ", c.parts[0].stage, " and ",
               part.stage);
      }
      for (std::size_t j = 0; j < i; ++j) {
        if (c.parts[j].microbatch == part.microbatch) {
          refuse(r, t, "both parts belong to micro-batch ", part.microbatch, ": one would wait for the other");
        }
      }
    }
    if (c.kind == Kind::overlap && forwards != 1) {
      refuse(r, t, "OVERLAP_F_B holds ", forwards, " forwards, needs a forward and a backward");
    }
  }

  // More (stage, micro-batch) pairs than actions: some are missing; the first is found without a table of pairs.
  [[noreturn]] void first_missing() const {
    std::set<std::pair<std::int64_t, std::int64_t>> passes;
    each([&](std::int64_t, std::int64_t, const Action&, const Action& a) {
      if (is_pass(a.kind)) passes.emplace(a.stage, a.microbatch);
    });
    std::int64_t stage = 0;
    std::int64_t m = 0;
    for (const auto& [has_stage, has_m] : passes) {
      if (has_stage != stage || has_m != m) break;
      if (++m == s_.microbatches) m = 0, ++stage;
    }
    if (stage >= s_.stages) stage = 0, m = 0;
    missing(stage, m, Kind::forward);
  }

  [[noreturn]] void missing(std::int64_t stage, std::int64_t m, Kind kind) const {
    const std::int64_t r = home_[stage];
    throw schedule_error(quote(detail::join("stage ", stage, " on rank ", r, " has no ", verb(kind), " of micro-batch ",
                                            m, ", ", s_.microbatches, " micro-batches are expected"),
                               s_, r, static_cast<std::int64_t>(s_.ranks[r].size())));
  }

  void completeness() const {
    // Bits of what was done to a (stage, micro-batch): 1 forward, 2 B, 4 I, 8 W, 16 S.
    std::vector<std::uint8_t> done(static_cast<std::size_t>(s_.stages * s_.microbatches), 0);
    each([&](std::int64_t r, std::int64_t t, const Action&, const Action& a) {
      const int bit = is_pass(a.kind)                   ? 1
                      : a.kind == Kind::backward        ? 2
                      : a.kind == Kind::backward_input  ? 4
                      : a.kind == Kind::backward_weight ? 8
                      : a.kind == Kind::sample          ? 16
                                                        : 0;
      if (bit == 0) return;
      auto& bits = done[a.stage * s_.microbatches + a.microbatch];
      if ((bits & bit) != 0) {
        refuse(r, t, "the ", verb(a.kind), " of micro-batch ", a.microbatch, " on stage ", a.stage,
               " stands here twice");
      }
      if (bit == 2 ? (bits & 12) != 0 : (bit & 12) != 0 && (bits & 2) != 0) {
        refuse(r, t, "micro-batch ", a.microbatch, " on stage ", a.stage, " has a full backward B and a half (I or W)");
      }
      bits = static_cast<std::uint8_t>(bits | bit);
    });
    for (std::int64_t i = 0; i < s_.stages * s_.microbatches; ++i) {
      const auto lacks = [&](Kind kind) { missing(i / s_.microbatches, i % s_.microbatches, kind); };
      if ((done[i] & 1) == 0) lacks(Kind::forward);
      if (s_.mode != Mode::train || (done[i] & 2) != 0) continue;
      if ((done[i] & 12) == 0) lacks(Kind::backward);
      if ((done[i] & 4) == 0) lacks(Kind::backward_input);
      if ((done[i] & 8) == 0) lacks(Kind::backward_weight);
    }
  }

  const Schedule& s_;
  const Rules& rules_;
  std::vector<std::int64_t> home_;
};

}  // namespace

void refuse_cell(const Schedule& s, std::int64_t rank, std::int64_t step, std::string_view words) {
  const auto& list = s.ranks[rank];
  const bool inside = step < static_cast<std::int64_t>(list.size());
  throw schedule_error(quote(detail::join("rank ", rank, ", step ", step, inside ? " (" : "",
                                          inside ? to_text(list[step]) : "", inside ? "): " : ": ", words),
                             s, rank, step));
}

void check_shape(const Schedule& schedule, const Rules& rules) { Shape(schedule, rules).check(); }

void validate(const Schedule& schedule, const Rules& rules) {
  check_shape(schedule, rules);
  if (schedule.size() == 0) return;
  const Index index(schedule);
  if (schedule.mode == Mode::serve) check_serving(schedule, index);
  check_order(schedule, index, rules);
  check_messages(schedule, index, rules);
  check_memory(schedule, index, rules);
  const Spans spans = run(schedule, index, rules.sends, {}, {});
  if (!spans.deadlock.empty()) {
    refuse_cell(schedule, spans.rank, spans.step,
                detail::join("deadlock with ", name_of(rules.sends), " sends: ", spans.deadlock));
  }
}

}  // namespace sparsespan::pipeline
