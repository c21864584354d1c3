#include "pipeline/simulate.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "pipeline/validate.h"

namespace sparsespan::pipeline {

namespace {

void require_cost(std::string_view argument, double value, const Action* at = nullptr) {
  if (std::isfinite(value) && value >= 0.0) return;
  refuse_value("simulate", argument, "is ", value, at != nullptr ? " for " + to_text(*at) : "",
               ", needs a finite number of 0 or more");
}

double leaf_cost(const Costs& costs, const Action& a) {
  const auto k = static_cast<std::size_t>(a.kind);
  double cost = costs.fixed[k];
  if (costs.custom[k]) {
    cost = costs.custom[k](a);
  } else if (a.kind == Kind::prefill && costs.prefill) {
    cost = costs.prefill->seconds(static_cast<double>(a.length), static_cast<double>(a.start));
  }
  require_cost("the cost", cost, &a);
  return costs.stage_weights.empty() || !is_compute(a.kind) ? cost : cost * costs.stage_weights[a.stage];
}

double cell_cost(const Costs& costs, const Action& a) {
  if (a.kind == Kind::idle || is_send(a.kind) || is_recv(a.kind) || a.kind == Kind::evict) return 0.0;
  if (!is_container(a.kind)) return leaf_cost(costs, a);
  double sum = 0.0;
  double weight = costs.stage_weights.empty() ? 1.0 : 0.0;
  for (const Action& part : a.parts) {
    sum += leaf_cost(costs, part);
    if (!costs.stage_weights.empty()) weight = std::max(weight, costs.stage_weights[part.stage]);
  }
  return a.kind == Kind::overlap && costs.overlap ? *costs.overlap * weight : sum;
}

// Tokens of every micro-batch (1 where it has none): a message's size.
std::vector<double> message_sizes(const Schedule& s, const Costs& costs) {
  std::vector<double> bytes(static_cast<std::size_t>(s.microbatches), costs.message_bytes);
  if (s.mode != Mode::serve) return bytes;
  for (const auto& list : s.ranks) {
    for (const Action& cell : list) {
      for_each_leaf(cell, [&](const Action& a) {
        if (is_pass(a.kind)) bytes[a.microbatch] = costs.message_bytes * static_cast<double>(a.length);
      });
    }
  }
  return bytes;
}

void require_costs(const Schedule& s, const Costs& costs) {
  for (const double value : costs.fixed) require_cost("a cost", value);
  if (costs.overlap) require_cost("overlap", *costs.overlap);
  require_cost("latency", costs.link.latency);
  require_cost("bandwidth", costs.link.bandwidth);
  require_cost("message_bytes", costs.message_bytes);
  const auto per_stage = [&](std::string_view name, const std::vector<double>& values, bool one) {
    for (const double v : values) require_cost(name, v);
    const auto n = static_cast<std::int64_t>(values.size());
    if (n != 0 && n != s.stages && !(one && n == 1)) {
      refuse_value("simulate", name, "has ", n, " values, needs one for each of the ", s.stages, " stages");
    }
  };
  per_stage("stage_weights", costs.stage_weights, false);
  per_stage("kv_bytes_per_token", costs.kv_bytes, true);
}

std::vector<double> peak_kv(const Schedule& s, const Costs& costs) {
  std::vector<double> peaks(s.ranks.size(), 0.0);
  if (costs.kv_bytes.empty() || s.mode != Mode::serve) return peaks;
  for (std::size_t r = 0; r < s.ranks.size(); ++r) {
    walk_kv(s, static_cast<std::int64_t>(r), costs.kv_bytes,
            [&](std::int64_t, double held) { peaks[r] = std::max(peaks[r], held); });
  }
  return peaks;
}

}  // namespace

Durations price(const Schedule& s, const Costs& costs) {
  check_shape(s, {});  // stages and micro-batches index the tables below
  require_costs(s, costs);
  const std::vector<double> sizes = message_sizes(s, costs);
  Durations durations;
  for (const auto& list : s.ranks) {
    std::vector<double> cells;
    std::vector<double> bytes;
    cells.reserve(list.size());
    bytes.reserve(list.size());
    for (const Action& a : list) {
      cells.push_back(cell_cost(costs, a));
      double sum = 0.0;
      if (a.kind != Kind::send_t) {
        for_each_leaf(a, [&](const Action& leaf) { sum += leaf.microbatch >= 0 ? sizes[leaf.microbatch] : 0.0; });
      }
      bytes.push_back(sum);
    }
    durations.cells.push_back(std::move(cells));
    durations.bytes.push_back(std::move(bytes));
  }
  return durations;
}

Simulation simulate(const Schedule& s, const Costs& costs, const Durations& durations, Transport transport) {
  const Index index(s);
  check_order(s, index, {});
  Simulation result;
  result.spans = run(s, index, transport, durations, costs.link);
  if (!result.spans.deadlock.empty()) {
    refuse_cell(s, result.spans.rank, result.spans.step,
                detail::join("deadlock with ", name_of(transport), " messages: ", result.spans.deadlock));
  }
  for (const double busy : result.spans.busy) result.bubble.push_back(result.spans.makespan - busy);
  result.peak_activations = peak_activations(s);
  result.peak_kv_bytes = peak_kv(s, costs);
  return result;
}

}  // namespace sparsespan::pipeline
