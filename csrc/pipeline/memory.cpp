// What a rank holds at once: activations, KV and weights. Only the order of its own list matters, no durations.

#include <algorithm>
#include <map>

#include "core/check.h"
#include "pipeline/validate.h"

namespace sparsespan::pipeline {

namespace {

// Calls f(step, held) after each cell's takings and before its releases.
template <class F>
void walk_activations(const Schedule& s, std::int64_t r, F&& f) {
  std::int64_t held = 0;
  for (std::size_t t = 0; t < s.ranks[r].size(); ++t) {
    std::int64_t released = 0;
    for_each_leaf(s.ranks[r][t], [&](const Action& a) {
      if (is_pass(a.kind)) ++held;
      // Without a backward the activations live as long as the pass.
      if (is_pass(a.kind) && s.mode != Mode::train) ++released;
      if (a.kind == Kind::backward || a.kind == Kind::backward_weight) ++released;
    });
    f(static_cast<std::int64_t>(t), held);
    held -= released;
  }
}

// `held` by stage, shared by all ranks: a stage lives on one of them.
void check_weights(const Schedule& s, std::int64_t r, const Rules& rules, std::vector<bool>& held) {
  std::int64_t count = 0;
  double bytes = 0.0;
  const auto weight = [&](std::int64_t stage) { return rules.stage_bytes.empty() ? 0.0 : rules.stage_bytes[stage]; };
  const bool fetches = std::any_of(s.ranks[r].begin(), s.ranks[r].end(),
                                   [](const Action& a) { return a.kind == Kind::fetch || a.kind == Kind::evict; });
  const auto hold = [&](std::int64_t stage, std::int64_t t) {
    held[stage] = true;
    bytes += weight(stage);
    if (++count > rules.max_active_stages && rules.max_active_stages >= 0) {
      refuse_cell(s, r, t,
                  detail::join("holds the weights of ", count, " stages, the limit is ", rules.max_active_stages));
    }
    if (rules.weight_budget >= 0.0 && bytes > rules.weight_budget) {
      refuse_cell(s, r, t, detail::join("holds ", bytes, " bytes of weights, the budget is ", rules.weight_budget));
    }
  };
  for (std::size_t i = 0; i < s.ranks[r].size(); ++i) {
    const auto t = static_cast<std::int64_t>(i);
    const Action& cell = s.ranks[r][i];
    if (cell.kind == Kind::fetch) {
      if (held[cell.stage]) refuse_cell(s, r, t, "fetches weights that are held already");
      hold(cell.stage, t);
    } else if (cell.kind == Kind::evict) {
      if (!held[cell.stage]) refuse_cell(s, r, t, "evicts weights that are not held");
      held[cell.stage] = false;
      --count;
      bytes -= weight(cell.stage);
    } else if (is_compute(cell.kind)) {
      for_each_leaf(cell, [&](const Action& a) {
        if (held[a.stage] || a.kind == Kind::sample) return;
        if (fetches)
          refuse_cell(s, r, t, detail::join("the weights of stage ", a.stage, " are not here: fetch them first"));
        hold(a.stage, t);  // resident: counted from its first use on
      });
    }
  }
  for (const Action& cell : s.ranks[r]) {
    if (fetches && cell.kind == Kind::fetch && held[cell.stage]) {
      refuse_cell(s, r, static_cast<std::int64_t>(s.ranks[r].size()),
                  detail::join("the weights of stage ", cell.stage, " are never evicted"));
    }
  }
}

// `left` by stage: micro-batches that lack their gradients; -1 once they are reduced.
void check_gradients(const Schedule& s, std::int64_t r, std::vector<std::int64_t>& left) {
  for (std::size_t i = 0; i < s.ranks[r].size(); ++i) {
    for_each_leaf(s.ranks[r][i], [&](const Action& a) {
      const auto t = static_cast<std::int64_t>(i);
      if (a.kind == Kind::backward || a.kind == Kind::backward_weight) --left[a.stage];
      if (a.kind != Kind::reduce_grad) return;
      if (left[a.stage] > 0) {
        refuse_cell(s, r, t, detail::join("reduces gradients while ", left[a.stage], " micro-batches lack theirs"));
      }
      if (left[a.stage] < 0) refuse_cell(s, r, t, "reduces gradients for the second time");
      left[a.stage] = -1;
    });
  }
}

}  // namespace

void walk_kv(const Schedule& s, std::int64_t r, const std::vector<double>& per_token,
             const std::function<void(std::int64_t, double)>& f) {
  std::map<std::int32_t, std::size_t> last;  // the step after which a request needs its KV no more
  for (std::size_t t = 0; t < s.ranks[r].size(); ++t) {
    for_each_leaf(s.ranks[r][t], [&](const Action& a) {
      if (is_pass(a.kind)) last[a.request] = t;
    });
  }
  std::map<std::pair<std::int32_t, std::int32_t>, double> held;  // (request, stage)
  double total = 0.0;
  for (std::size_t t = 0; t < s.ranks[r].size(); ++t) {
    for_each_leaf(s.ranks[r][t], [&](const Action& a) {
      if (!is_pass(a.kind)) return;
      const auto [at, fresh] = held.try_emplace({a.request, a.stage}, 0.0);
      const std::int64_t prefix = fresh && a.kind == Kind::prefill ? a.start : 0;  // cached before the schedule starts
      const double bytes = static_cast<double>(prefix + a.length) * per_token[per_token.size() == 1 ? 0 : a.stage];
      at->second += bytes;
      total += bytes;
    });
    f(static_cast<std::int64_t>(t), total);
    for_each_leaf(s.ranks[r][t], [&](const Action& a) {
      if (!is_pass(a.kind) || last[a.request] != t) return;
      for (auto at = held.lower_bound({a.request, -1}); at != held.end() && at->first.first == a.request;
           at = held.erase(at)) {
        total -= at->second;
      }
    });
  }
}

std::vector<std::int64_t> peak_activations(const Schedule& s) {
  std::vector<std::int64_t> peaks(s.ranks.size(), 0);
  for (std::size_t r = 0; r < s.ranks.size(); ++r) {
    walk_activations(s, static_cast<std::int64_t>(r),
                     [&](std::int64_t, std::int64_t held) { peaks[r] = std::max(peaks[r], held); });
  }
  return peaks;
}

void check_memory(const Schedule& s, const Index&, const Rules& rules) {
  const bool weighs = rules.weight_budget >= 0.0 || !rules.stage_bytes.empty();
  if (weighs && static_cast<std::int64_t>(rules.stage_bytes.size()) != s.stages) {
    refuse_value("validate", "stage_bytes", "has ", rules.stage_bytes.size(), " values, needs one for each of the ",
                 s.stages, " stages");
  }
  std::vector<bool> present(static_cast<std::size_t>(s.stages), false);
  std::vector<std::int64_t> left(static_cast<std::size_t>(s.stages), s.microbatches);
  for (std::int64_t r = 0; r < static_cast<std::int64_t>(s.ranks.size()); ++r) {
    check_weights(s, r, rules, present);
    check_gradients(s, r, left);
    if (rules.max_activations >= 0) {
      walk_activations(s, r, [&](std::int64_t t, std::int64_t held) {
        if (held <= rules.max_activations) return;
        refuse_cell(
            s, r, t,
            detail::join("holds the activations of ", held, " micro-batches, the limit is ", rules.max_activations));
      });
    }
    if (rules.max_kv_tokens >= 0 && s.mode == Mode::serve) {
      walk_kv(s, r, {1.0}, [&](std::int64_t t, double held) {
        if (held <= static_cast<double>(rules.max_kv_tokens)) return;
        refuse_cell(
            s, r, t,
            detail::join("holds the KV of ", held, " tokens (all its stages), the limit is ", rules.max_kv_tokens));
      });
    }
  }
}

}  // namespace sparsespan::pipeline
