#pragma once

// Generators: compute-only schedules, without idle cells. Messages and weight traffic are added by lower.h.

#include <cstdint>
#include <vector>

#include "pipeline/schedule.h"

namespace sparsespan::pipeline {

// All forwards, then all backwards in the same order; stages_per_rank > 1 loops (breadth first, backwards reversed).
Schedule gpipe(std::int64_t ranks, std::int64_t microbatches);
Schedule one_f_one_b(std::int64_t ranks, std::int64_t microbatches);
Schedule interleaved(std::int64_t ranks, std::int64_t microbatches, std::int64_t stages_per_rank);
// ZB-H1 (stages_per_rank = 1) and its interleaved form.
Schedule zero_bubble_h1(std::int64_t ranks, std::int64_t microbatches, std::int64_t stages_per_rank);
Schedule zero_bubble_v(std::int64_t ranks, std::int64_t microbatches);
Schedule dualpipe_v(std::int64_t ranks, std::int64_t microbatches);

// chunks[q]: the chunk sizes of request q, whose first position is prefixes[q] (empty: 0). Requests run one after the
// other; the last chunk of each is sampled.
Schedule chunked_prefill(std::int64_t ranks, const std::vector<std::vector<std::int64_t>>& chunks,
                         const std::vector<std::int64_t>& prefixes);
// ranks + depth slots of `batch` requests, `steps` tokens each.
Schedule decode_loop(std::int64_t ranks, std::int64_t steps, std::int64_t depth, std::int64_t batch);
// The chunks of one request, each in one forward with a decode step of ranks + depth slots in turn.
Schedule mixed_prefill_decode(std::int64_t ranks, const std::vector<std::int64_t>& chunks, std::int64_t prefix,
                              std::int64_t depth, std::int64_t batch);

}  // namespace sparsespan::pipeline
