#pragma once

// Proves that a schedule can run and does all its work, or throws schedule_error with the reason and the grid.

#include <cstdint>
#include <functional>
#include <string_view>
#include <vector>

#include "pipeline/engine.h"
#include "pipeline/schedule.h"

namespace sparsespan::pipeline {

struct Rules {
  std::int64_t ranks = -1;  // -1: as many as the schedule has
  std::int64_t stages = -1;
  std::int64_t microbatches = -1;
  Transport sends = Transport::blocking;  // buffered: sends never wait
  bool lockstep = false;                  // every cell takes one step; what it needs ends in an earlier step
  std::int64_t max_active_stages = -1;    // weights held at once by a rank
  std::vector<double> stage_bytes;        // [stages] weights; with weight_budget
  double weight_budget = -1.0;
  std::int64_t max_activations = -1;       // (stage, micro-batch) pairs held at once by a rank
  std::int64_t max_kv_tokens = -1;         // stage-tokens of KV held at once by a rank
  std::vector<std::int64_t> stage_layers;  // [stages] layers of each stage, with shared_indexer
  std::vector<bool> shared_indexer;        // [layers] true: the layer reuses the indices of the layer below
};

void validate(const Schedule& schedule, const Rules& rules);

// The parts of validate, in their order. Every later one relies on the earlier ones.
void check_shape(const Schedule& schedule, const Rules& rules);
void check_order(const Schedule& schedule, const Index& index, const Rules& rules);
void check_messages(const Schedule& schedule, const Index& index, const Rules& rules);
void check_serving(const Schedule& schedule, const Index& index);
void check_memory(const Schedule& schedule, const Index& index, const Rules& rules);

// Throws schedule_error: "validate: rank 1, step 4 (1B0): <words>" and the grid with that cell marked.
[[noreturn]] void refuse_cell(const Schedule& schedule, std::int64_t rank, std::int64_t step, std::string_view words);

// Most (stage, micro-batch) pairs that each rank holds at once.
std::vector<std::int64_t> peak_activations(const Schedule& schedule);
// Calls f(step, bytes of KV held) for each step of a rank. per_token: by stage, or one value. A request's KV is held
// from its first chunk (with what is cached before it) to its last action on the rank.
void walk_kv(const Schedule& schedule, std::int64_t rank, const std::vector<double>& per_token,
             const std::function<void(std::int64_t, double)>& f);

}  // namespace sparsespan::pipeline
