#pragma once

// Chunked prefill: what a chunk costs, how large the next one should be, how layers are dealt to stages.

#include <cstdint>
#include <string_view>
#include <vector>

namespace sparsespan::pipeline {

// t(C, H) = a (C H + C^2 / 2) + b C + c for a chunk of C tokens after a prefix of H.
struct ChunkCost {
  double a = 0.0;
  double b = 0.0;
  double c = 0.0;
  double seconds(double length, double prefix) const {
    return a * (length * prefix + 0.5 * length * length) + b * length + c;
  }
};

// Least squares over samples (length, prefix, seconds). Needs 8 samples of three independent directions and refuses a
// fit with a <= 0; a negative b is set to 0. The same samples give the same bits on every rank.
ChunkCost fit_chunk_cost(const std::vector<double>& lengths, const std::vector<double>& prefixes,
                         const std::vector<double>& seconds);

struct ChunkRule {
  std::int64_t total = 0;  // tokens to prefill
  std::int64_t first = 0;  // the first chunk, and the measure of all others
  ChunkCost cost;
  double smooth = 0.75;     // 0: all chunks like the first, 1: all of equal cost
  std::int64_t align = 64;  // sizes are multiples of it, rounded down; the last chunk takes what is left
  std::int64_t floor = -1;  // no chunk is smaller; -1: first / 4
  std::int64_t cap = -1;    // no chunk is larger; -1: no cap
  std::int64_t prefix = 0;  // tokens cached before the first chunk
};
std::vector<std::int64_t> chunk_sizes(const ChunkRule& rule);
// The chunk that follows `done` tokens (prefix included), before it is cut to what is left.
std::int64_t next_chunk(const ChunkRule& rule, std::int64_t done);

// Layers of each stage. flavor: "sglang" (the last stages take the remainder), "sglang_first" (the first ones do),
// "vllm" and "vllm_ascend" (the second to last and the ones before it).
std::vector<std::int64_t> split_layers(std::int64_t layers, std::int64_t stages, std::string_view flavor);
// The placement of the remainder that ends a series of chunks soonest. `chunks`: cost of each chunk in one layer;
// `extra`: work of a stage besides its layers, in layers ([stages], or empty: stages then differ by one layer at most).
// Ties go to the split whose heavy stages come last.
std::vector<std::int64_t> balance_layers(std::int64_t layers, std::int64_t stages, const std::vector<double>& chunks,
                                         const std::vector<double>& extra);
// The end of the last chunk on the last stage: fin[s][i] = max(fin[s][i-1], fin[s-1][i]) + chunks[i] * weights[s].
double flow_makespan(const std::vector<double>& chunks, const std::vector<double>& weights);

}  // namespace sparsespan::pipeline
