#pragma once

#include <string_view>

#include "indexer/candidates.h"
#include "indexer/scores.h"

namespace sparsespan::indexer {

struct SelectionOutput {
  std::string_view op;
  TensorView<std::int32_t, 2> out;  // [T, k] columns, ascending, then -1
  NanRule nan = NanRule::raise;
  Ranked ranked;
  Validate validate = Validate::full;
  int threads = 0;
};

// The choice of topk over the scores that write_logits would write, without their matrix: a row keeps the best it has
// seen, and columns come in ascending order, so that only a strictly greater score can still enter.
void select_columns(ScoreProblem problem, const SelectionOutput& output);

}  // namespace sparsespan::indexer
