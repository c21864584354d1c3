#include "pipeline/lower.h"

#include <algorithm>
#include <limits>

#include "core/check.h"

namespace sparsespan::pipeline {

namespace {

class Messages {
 public:
  Messages(const Schedule& s, const Rules& rules) : s_(s), index_(s), done_(static_cast<std::size_t>(index_.slots())) {
    needs_indices_.assign(static_cast<std::size_t>(s.stages), false);
    std::int64_t first = 0;
    for (std::int64_t stage = 0; stage < s.stages && !rules.shared_indexer.empty(); ++stage) {
      needs_indices_[stage] = stage > 0 && rules.stage_layers[stage] > 0 && rules.shared_indexer[first];
      first += rules.stage_layers[stage];
    }
    feeds_.assign(static_cast<std::size_t>(s.microbatches), false);
    for (std::int64_t m = 0; m < s.microbatches; ++m) {
      if (index_.token_of(m) >= 0) feeds_[index_.token_of(m)] = true;
    }
  }

  // One action of each rank in turn, as torch's lowering does, so that lists come out alike.
  Schedule lower() {
    const std::size_t ranks = s_.ranks.size();
    out_.resize(ranks);
    std::vector<std::size_t> at(ranks, 0);
    for (bool moved = true; moved;) {
      moved = false;
      for (std::size_t r = 0; r < ranks; ++r) {
        const auto& list = s_.ranks[r];
        while (at[r] < list.size() && list[at[r]].kind == Kind::idle) ++at[r];
        if (at[r] == list.size() || !ready(list[at[r]])) continue;
        place(r, list[at[r]++]);
        moved = true;
      }
    }
    Schedule lowered = s_;
    lowered.ranks = std::move(out_);
    return lowered;
  }

 private:
  bool ready(const Action& cell) const {
    bool ready = true;
    for_each_leaf(cell, [&](const Action& a) {
      for (const Need& n : index_.needs(a)) ready = ready && done_[index_.slot(n)];
    });
    return ready;
  }

  void place(std::size_t r, const Action& cell) {
    out_[r].push_back(cell);
    for_each_leaf(cell, [&](const Action& a) {
      for (const Need& made : index_.makes(a)) done_[index_.slot(made)] = true;
    });
    for_each_leaf(cell, [&](const Action& a) {
      if (is_pass(a.kind) && a.stage + 1 < s_.stages) {
        message(a, Kind::send_f);
        if (needs_indices_[a.stage + 1]) message(a, Kind::send_x);
      }
      if (is_backward(a.kind) && a.stage > 0) message(a, Kind::send_b);
      if (a.kind == Kind::sample && feeds_[a.microbatch]) message(a, Kind::send_t);
    });
  }

  void message(const Action& from, Kind kind) {
    Action send;
    send.kind = kind;
    send.stage = from.stage;
    send.microbatch = from.microbatch;
    Action receive = send;
    receive.kind = static_cast<Kind>(static_cast<int>(kind) + 1);
    receive.stage = static_cast<std::int32_t>(index_.peer_stage(send));
    const std::int32_t there = index_.rank_of(receive.stage);
    const std::int32_t here = index_.rank_of(send.stage);
    if (here == there) return;
    out_[here].push_back(send);
    out_[there].push_back(receive);
  }

  const Schedule& s_;
  Index index_;
  std::vector<bool> done_;
  std::vector<bool> needs_indices_;
  std::vector<bool> feeds_;
  std::vector<std::vector<Action>> out_;
};

// The stages of one list in the order of their next use.
class NextUse {
 public:
  NextUse(const std::vector<Action>& list, std::int64_t stages) : uses_(static_cast<std::size_t>(stages)) {
    for (std::size_t t = 0; t < list.size(); ++t) {
      for_each_leaf(list[t], [&](const Action& a) {
        if (!is_compute(a.kind) || a.kind == Kind::sample) return;
        auto& uses = uses_[a.stage];
        if (uses.empty()) stages_.push_back(a.stage);
        uses.push_back(t);
      });
    }
    for (auto& uses : uses_) std::reverse(uses.begin(), uses.end());
  }
  const std::vector<std::int32_t>& from(std::size_t t) {
    for (const std::int32_t stage : stages_) {
      auto& uses = uses_[stage];
      while (!uses.empty() && uses.back() < t) uses.pop_back();
    }
    const auto next = [&](std::int32_t stage) {
      return uses_[stage].empty() ? std::numeric_limits<std::size_t>::max() : uses_[stage].back();
    };
    std::stable_sort(stages_.begin(), stages_.end(), [&](auto a, auto b) { return next(a) < next(b); });
    live_.clear();
    for (const std::int32_t stage : stages_) {
      if (!uses_[stage].empty()) live_.push_back(stage);
    }
    return live_;
  }

 private:
  std::vector<std::vector<std::size_t>> uses_;  // by stage, the next one last
  std::vector<std::int32_t> stages_;
  std::vector<std::int32_t> live_;
};

Action weights(Kind kind, std::int64_t stage) {
  Action a;
  a.kind = kind;
  a.stage = static_cast<std::int32_t>(stage);
  return a;
}

// The parts of a container come first, in their own order.
std::vector<std::int32_t> wanted(const Action& cell, const std::vector<std::int32_t>& next) {
  std::vector<std::int32_t> order;
  const auto add = [&](std::int32_t stage) {
    if (std::find(order.begin(), order.end(), stage) == order.end()) order.push_back(stage);
  };
  for_each_leaf(cell, [&](const Action& a) { add(a.stage); });
  for (const std::int32_t stage : next) add(stage);
  return order;
}

struct WeightLimits {
  std::int64_t max_active;
  const std::vector<double>& stage_bytes;
  double budget;  // < 0: none
};

// One rank's list with FETCH and EVICT.
class Weights {
 public:
  Weights(const std::vector<Action>& list, std::int64_t stages, WeightLimits limits)
      : list_(list), limits_(limits), next_(list, stages), held_(static_cast<std::size_t>(stages), false) {}

  std::vector<Action> lower() {
    for (std::size_t t = 0; t < list_.size(); ++t) {
      const Action& cell = list_[t];
      if (cell.kind == Kind::idle) continue;
      if (is_compute(cell.kind) && cell.kind != Kind::sample) make_room(t, cell);
      out_.push_back(cell);
    }
    for (std::size_t stage = 0; stage < held_.size(); ++stage) {
      if (held_[stage]) out_.push_back(weights(Kind::evict, static_cast<std::int64_t>(stage)));
    }
    return std::move(out_);
  }

 private:
  // How many of `order`, from the front, may be held at once.
  std::size_t fitting(const std::vector<std::int32_t>& order) const {
    double bytes = 0.0;
    std::size_t fits = 0;
    while (fits < order.size() && static_cast<std::int64_t>(fits) < limits_.max_active) {
      if (limits_.budget >= 0.0) bytes += limits_.stage_bytes[order[fits]];
      if (limits_.budget >= 0.0 && bytes > limits_.budget) break;
      ++fits;
    }
    return fits;
  }

  void make_room(std::size_t t, const Action& cell) {
    std::vector<std::int32_t> order = wanted(cell, next_.from(t));
    const std::size_t needed = wanted(cell, {}).size();
    const std::size_t fits = fitting(order);
    if (fits < needed) {
      const bool count = static_cast<std::int64_t>(needed) > limits_.max_active;
      refuse_value("add_fetch_evict", count ? "max_active" : "budget", "is too small for ", to_text(cell),
                   ", which needs ", needed, " stages at once");
    }
    order.resize(fits);
    std::vector<bool> keep(held_.size(), false);
    for (const std::int32_t stage : order) keep[stage] = true;
    for (std::size_t stage = 0; stage < held_.size(); ++stage) {
      if (!held_[stage] || keep[stage]) continue;
      out_.push_back(weights(Kind::evict, static_cast<std::int64_t>(stage)));
      held_[stage] = false;
    }
    for (const std::int32_t stage : order) {
      if (!held_[stage]) out_.push_back(weights(Kind::fetch, stage));
      held_[stage] = true;
    }
  }

  const std::vector<Action> list_;  // a copy: the caller overwrites the original
  WeightLimits limits_;
  NextUse next_;
  std::vector<bool> held_;
  std::vector<Action> out_;
};

}  // namespace

Schedule add_send_recv(const Schedule& s, const Rules& rules) {
  if (s.has_communication()) refuse_value("add_send_recv", "schedule", "has messages already");
  validate(s, rules);
  if (s.size() == 0) return s;
  return Messages(s, rules).lower();
}

Schedule add_fetch_evict(const Schedule& s, std::int64_t max_active, const std::vector<double>& stage_bytes,
                         double budget) {
  if (max_active < 1) refuse_value("add_fetch_evict", "max_active", "is ", max_active, ", needs at least 1");
  if (budget >= 0.0 && static_cast<std::int64_t>(stage_bytes.size()) != s.stages) {
    refuse_value("add_fetch_evict", "stage_bytes", "has ", stage_bytes.size(), " values, needs one for each of the ",
                 s.stages, " stages");
  }
  if (s.has(Kind::fetch) || s.has(Kind::evict)) {
    refuse_value("add_fetch_evict", "schedule", "fetches and evicts already");
  }
  validate(s, {});
  Schedule lowered = s;
  for (auto& list : lowered.ranks) list = Weights(list, s.stages, {max_active, stage_bytes, budget}).lower();
  return lowered;
}

Schedule merge_backward(const Schedule& s) {
  Schedule merged = s;
  for (auto& list : merged.ranks) {
    std::vector<Action> out;
    for (Action& a : list) {
      if (a.kind == Kind::idle) continue;
      if (a.kind == Kind::backward_weight && !out.empty() && out.back().kind == Kind::backward_input &&
          out.back().stage == a.stage && out.back().microbatch == a.microbatch) {
        out.back().kind = Kind::backward;
      } else {
        out.push_back(std::move(a));
      }
    }
    list = std::move(out);
  }
  return merged;
}

}  // namespace sparsespan::pipeline
