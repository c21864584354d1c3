#pragma once

// What a schedule costs: durations of cells, then the time line.

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "pipeline/chunking.h"
#include "pipeline/engine.h"

namespace sparsespan::pipeline {

struct Costs {
  std::array<double, kKinds> fixed{};
  // When set, asked for every action of the kind instead of `fixed`.
  std::array<std::function<double(const Action&)>, kKinds> custom;
  std::optional<ChunkCost> prefill;   // instead of fixed[P]
  std::optional<double> overlap;      // of an OVERLAP_F_B cell; none: the sum of its parts
  std::vector<double> stage_weights;  // [stages] factor on all compute of a stage; empty: 1
  Link link;
  double message_bytes = 0.0;    // F, B: of a message; P, D: of each of its tokens
  std::vector<double> kv_bytes;  // [stages] bytes of a token's KV on a stage; one value: for all; empty: none
};

struct Simulation {
  Spans spans;
  std::vector<double> bubble;
  std::vector<std::int64_t> peak_activations;
  std::vector<double> peak_kv_bytes;
};

// Calls custom costs: the caller holds whatever they need (Python's lock).
Durations price(const Schedule& schedule, const Costs& costs);
Simulation simulate(const Schedule& schedule, const Costs& costs, const Durations& durations, Transport transport);

}  // namespace sparsespan::pipeline
