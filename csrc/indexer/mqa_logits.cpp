#include "indexer/mqa_logits.h"

#include "core/op_scope.h"

#include "indexer/check.h"
#include "indexer/logits.h"

namespace sparsespan {

namespace {

constexpr std::string_view kOp = "mqa_logits";

void require_compressed(const MqaLogitsParams& p, const indexer::ScoreProblem& problem) {
  if (p.max_seqlen_k < 0) refuse_value(kOp, "max_seqlen_k", "is ", p.max_seqlen_k, ", needs at least 0");
  if (p.max_seqlen_k == 0) return;
  if (p.clean_logits) {
    refuse_value(kOp, "clean_logits", "is true with max_seqlen_k = ", p.max_seqlen_k,
                 ", needs false: compressed logits leave what lies past a row's window unwritten");
  }
  for (std::int64_t row = 0; row < problem.rows; ++row) {
    if (problem.windows[row].size() > p.max_seqlen_k) {
      refuse_value(kOp, "max_seqlen_k", "is ", p.max_seqlen_k, ", needs at least ", problem.windows[row].size(),
                   ", the length of row ", row);
    }
  }
}

indexer::ScoreProblem validate(const MqaLogitsParams& p) {
  indexer::ScoreProblem problem;
  indexer::set_queries(kOp, p.q, p.weights, false, problem);
  indexer::set_ragged_keys(kOp, {p.k, p.k_scale, p.ks, p.ke}, p.validate, problem);
  require_compressed(p, problem);
  const bool compressed = p.max_seqlen_k > 0;
  require_output(kOp, "out", p.out, DType::float32, {problem.rows, compressed ? p.max_seqlen_k : problem.columns},
                 compressed ? "[T, max_seqlen_k]" : "[T, S]", {&p.q, &p.k, &p.weights, &p.ks, &p.ke, &p.k_scale});
  return problem;
}

}  // namespace

void mqa_logits(const MqaLogitsParams& p) {
  const OpScope scope;
  const indexer::ScoreProblem problem = validate(p);
  indexer::write_logits(problem, {.out = p.out.as<float, 2>(),
                                  .clean = p.clean_logits,
                                  .from_window_start = p.max_seqlen_k > 0,
                                  .threads = p.threads});
}

}  // namespace sparsespan
