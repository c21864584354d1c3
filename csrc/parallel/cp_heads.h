#pragma once

// Attention output between "all heads of some tokens" and "some heads of all tokens". N ranks, t tokens per rank.

#include <memory>

#include "parallel/cp_work.h"

namespace sparsespan {

struct ExchangeHeadsParams {
  Tensor x;    // [t, C, ...]: this rank's tokens, or with `back` [N * t, C / N, ...]: this rank's columns of all tokens
  Tensor out;  // [N * t, C / N, ...]: row j * t + i is token i of rank j; with `back` [t, C, ...]
  bool back = false;
  int threads = 0;
};
// One all_to_all. Columns [r C / N, (r + 1) C / N) go to rank r; the way back is the inverse.
std::shared_ptr<CpWork> iexchange_heads(Communicator& comm, const ExchangeHeadsParams& params,
                                        const CommOptions& options);

}  // namespace sparsespan
