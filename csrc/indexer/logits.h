#pragma once

#include "indexer/scores.h"

namespace sparsespan::indexer {

struct LogitsOutput {
  TensorView<float, 2> out;  // [T, columns]
  bool clean = true;         // -inf outside the windows
  bool from_window_start = false;
  int threads = 0;
};

// Every score of every window to its place in `out`.
void write_logits(const ScoreProblem& problem, const LogitsOutput& output);

}  // namespace sparsespan::indexer
