#pragma once

// Rows of a batch to the ranks of a plan and back. N ranks, T rows, B requests; rows may be of any dtype and shape.

#include <cstdint>
#include <memory>
#include <string_view>

#include "parallel/cp_plan.h"
#include "parallel/cp_work.h"

namespace sparsespan {

using PlanPtr = std::shared_ptr<const CpPlan>;

struct SplitRowsParams {
  Tensor x;    // [T, ...] the batch, or [pad_to, ...] as an engine pads it; rows lie in one piece
  Tensor out;  // [counts[rank], ...] like x
  std::int64_t rank = 0;
  int threads = 0;
};
// out[i] = x[plan.rank_rows(rank)[i]], zeros where the plan pads.
void split_rows(const CpPlan& plan, const SplitRowsParams& params);

struct GatherRowsParams {
  Tensor x;           // [counts[rank], ...] this rank's rows in local order
  Tensor out;         // [T, ...], or with `last` [B, ...]; like x
  bool last = false;  // each request's last real row; zeros for a request that has none
  int threads = 0;
};
// One all_gather of padded_len rows per rank; with `last`, of the rows that their owners have.
std::shared_ptr<CpWork> igather_rows(Communicator& comm, const PlanPtr& plan, const GatherRowsParams& params,
                                     CommOptions options);

// The ranks of `comm` are those of the plan.
void require_ranks_of(std::string_view op, const CpPlan& plan, const Communicator& comm);
// `x` has the local rows of `rank`.
void require_local_rows(std::string_view op, std::string_view argument, const CpPlan& plan, std::int64_t rank,
                        const Tensor& x);
// Axes after the first lie in one piece; returns their bytes.
std::int64_t require_whole_rows(std::string_view op, std::string_view argument, const Tensor& x);
// What ranks compare so that they follow one plan and, by `salt`, mean one thing by it. Never 0.
std::uint64_t plan_stamp(const CpPlan& plan, std::uint64_t salt);

}  // namespace sparsespan
