#pragma once

#include <memory>
#include <optional>
#include <string>

#include "parallel/cp_plan.h"

namespace sparsespan {

struct SplitPlanParams {
  std::string scheme;
  Tensor cu_seqlens;   // [B + 1] int32 or int64, first row of each request, ends with T
  Tensor prefix_lens;  // [B] int32 or int64, cached keys before each request; not given = 0
  std::int64_t world_size = 1;
  Tensor row_kind;  // [T] int32 or int64: 0 prefill, 1 decode, 2 pad; not given = all prefill
  std::optional<std::int64_t> pad_to;
  std::string flavor;  // "native", "sglang", "vllm" or "vllm_ascend"
};

// Which rank computes which rows of the batch, in which order. Validates wholly; every length is legal unless the
// scheme is thd_even or an engine's flavor is asked for.
std::shared_ptr<const CpPlan> split_plan(const SplitPlanParams& params);

// Refuses what the scheme, or the engine behind the flavor, cannot split; says which scheme can.
void refuse_what_the_engine_refuses(const CpBatch& batch);

}  // namespace sparsespan
