#include "indexer/paged_mqa_logits.h"

#include "core/op_scope.h"

#include "indexer/check.h"
#include "indexer/logits.h"

namespace sparsespan {

namespace {

constexpr std::string_view kOp = "paged_mqa_logits";

indexer::ScoreProblem validate(const PagedMqaLogitsParams& p) {
  indexer::ScoreProblem problem;
  indexer::set_queries(kOp, p.q, p.weights, true, problem);
  indexer::set_paged_keys(kOp, {p.kv_cache, p.context_lens, p.block_table, p.page_size, p.layout, p.threads}, p.q,
                          p.validate, problem);
  if (p.max_context_len < problem.columns) {
    refuse_value(kOp, "max_context_len", "is ", p.max_context_len, ", needs at least ", problem.columns,
                 ", the longest row");
  }
  problem.columns = p.max_context_len;
  require_output(kOp, "out", p.out, DType::float32, {problem.rows, problem.columns}, "[T, max_context_len]",
                 {&p.q, &p.kv_cache, &p.weights, &p.context_lens, &p.block_table});
  return problem;
}

}  // namespace

void paged_mqa_logits(const PagedMqaLogitsParams& p) {
  const OpScope scope;
  const indexer::ScoreProblem problem = validate(p);
  indexer::write_logits(problem, {.out = p.out.as<float, 2>(), .clean = p.clean_logits, .threads = p.threads});
}

}  // namespace sparsespan
