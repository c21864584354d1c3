#include "indexer/select.h"

#include "core/op_scope.h"

#include "indexer/check.h"
#include "indexer/selection.h"

namespace sparsespan {

namespace {

template <class Params>
void run(std::string_view op, const Params& p, indexer::ScoreProblem&& problem, const indexer::Ranked& ranked = {}) {
  indexer::select_columns(std::move(problem), {.op = op,
                                               .out = p.out.template as<std::int32_t, 2>(),
                                               .nan = p.nan,
                                               .ranked = ranked,
                                               .validate = p.validate,
                                               .threads = p.threads});
}

void require_topk(std::string_view op, std::int64_t topk) {
  if (topk < 1) refuse_value(op, "topk", "is ", topk, ", needs at least 1");
}

}  // namespace

void select(const SelectParams& p) {
  const OpScope scope;
  constexpr std::string_view kOp = "select";
  indexer::ScoreProblem problem;
  indexer::set_queries(kOp, p.q, p.weights, false, problem);
  indexer::set_ragged_keys(kOp, {p.k, p.k_scale, p.ks, p.ke}, p.validate, problem);
  require_topk(kOp, p.topk);
  require_output(kOp, "out", p.out, DType::int32, {problem.rows, p.topk}, "[T, topk]",
                 {&p.q, &p.k, &p.weights, &p.ks, &p.ke, &p.k_scale});
  run(kOp, p, std::move(problem));
}

void paged_select(const PagedSelectParams& p) {
  const OpScope scope;
  constexpr std::string_view kOp = "paged_select";
  indexer::ScoreProblem problem;
  indexer::set_queries(kOp, p.q, p.weights, true, problem);
  indexer::set_paged_keys(kOp, {p.kv_cache, p.context_lens, p.block_table, p.page_size, p.layout, p.threads}, p.q,
                          p.validate, problem);
  require_topk(kOp, p.topk);
  require_output(kOp, "out", p.out, DType::int32, {problem.rows, p.topk}, "[T, topk]",
                 {&p.q, &p.kv_cache, &p.weights, &p.context_lens, &p.block_table});
  run(kOp, p, std::move(problem), p.ranked);
}

}  // namespace sparsespan
