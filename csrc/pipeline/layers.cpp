#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/check.h"
#include "pipeline/chunking.h"

namespace sparsespan::pipeline {

namespace {

void require_layers(std::int64_t layers, std::int64_t stages) {
  if (stages < 1) refuse_value("split_layers", "pp", "is ", stages, ", needs at least 1");
  if (layers < stages) {
    refuse_value("split_layers", "num_layers", "is ", layers, ", needs at least one for each of the ", stages,
                 " stages");
  }
}

double makespan(const std::vector<std::int64_t>& split, const std::vector<double>& chunks,
                const std::vector<double>& extra) {
  std::vector<double> weights(split.begin(), split.end());
  for (std::size_t s = 0; s < extra.size(); ++s) weights[s] += extra[s];
  return flow_makespan(chunks, weights);
}

// Moves one layer from one stage to another as long as that ends sooner.
std::vector<std::int64_t> descend(std::vector<std::int64_t> split, const std::vector<double>& chunks,
                                  const std::vector<double>& extra) {
  double best = makespan(split, chunks, extra);
  for (bool better = true; better;) {
    better = false;
    std::vector<std::int64_t> next = split;
    for (std::size_t from = 0; from < split.size(); ++from) {
      if (split[from] == 1) continue;
      for (std::size_t to = 0; to < split.size(); ++to) {
        if (to == from) continue;
        std::vector<std::int64_t> moved = split;
        --moved[from];
        ++moved[to];
        const double end = makespan(moved, chunks, extra);
        // Sums of the same terms in another order differ by rounding: that is no gain.
        if (end < best * (1.0 - 1e-12)) best = end, next = moved, better = true;
      }
    }
    split = std::move(next);
  }
  return split;
}

}  // namespace

std::vector<std::int64_t> split_layers(std::int64_t layers, std::int64_t stages, std::string_view flavor) {
  require_layers(layers, stages);
  std::vector<std::int64_t> split(static_cast<std::size_t>(stages), layers / stages);
  const std::int64_t rest = layers % stages;
  for (std::int64_t i = 0; i < rest; ++i) {
    if (flavor == "sglang") {
      ++split[stages - 1 - i];
    } else if (flavor == "sglang_first") {
      ++split[i];
    } else {
      ++split[stages - 2 - i];
    }
  }
  if (flavor != "sglang" && flavor != "sglang_first" && flavor != "vllm" && flavor != "vllm_ascend") {
    refuse_value("split_layers", "flavor", "is '", flavor,
                 "', needs 'sglang', 'sglang_first', 'vllm' or 'vllm_ascend'");
  }
  return split;
}

double flow_makespan(const std::vector<double>& chunks, const std::vector<double>& weights) {
  std::vector<double> end(chunks.size(), 0.0);
  for (const double weight : weights) {
    double before = 0.0;
    for (std::size_t i = 0; i < chunks.size(); ++i) {
      before = std::max(before, end[i]) + chunks[i] * weight;
      end[i] = before;
    }
  }
  return chunks.empty() ? 0.0 : end.back();
}

std::vector<std::int64_t> balance_layers(std::int64_t layers, std::int64_t stages, const std::vector<double>& chunks,
                                         const std::vector<double>& extra) {
  require_layers(layers, stages);
  const auto require = [](std::string_view name, const std::vector<double>& values) {
    for (const double v : values) {
      if (!(std::isfinite(v) && v >= 0.0)) refuse_value("split_layers", name, "holds ", v, ", needs 0 or more");
    }
  };
  require("balance", chunks);
  require("extra", extra);
  if (!extra.empty() && static_cast<std::int64_t>(extra.size()) != stages) {
    refuse_value("split_layers", "extra", "has ", extra.size(), " values, needs one for each of the ", stages,
                 " stages");
  }
  if (chunks.empty()) refuse_value("split_layers", "balance", "is empty, needs the cost of each chunk");
  // Every placement of the remainder, as long as they are few.
  std::vector<std::int64_t> heavy(static_cast<std::size_t>(stages), 0);
  std::fill(heavy.end() - layers % stages, heavy.end(), 1);
  std::vector<std::int64_t> best;
  double soonest = 0.0;
  constexpr int kMostPlacements = 20000;
  int tried = 0;
  do {
    std::vector<std::int64_t> split(heavy);
    for (auto& n : split) n += layers / stages;
    const double end = makespan(split, chunks, extra);
    if (best.empty() || end < soonest * (1.0 - 1e-12)) soonest = end, best = split;
  } while (std::next_permutation(heavy.begin(), heavy.end()) && ++tried < kMostPlacements);
  // Equal layers stay nearly equal (memory); only uneven work besides them is worth moving layers for.
  return extra.empty() ? best : descend(best, chunks, extra);
}

}  // namespace sparsespan::pipeline
