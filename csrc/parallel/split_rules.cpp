// What each engine can split, in its own terms, and the way out. Sources: SGLang layers/cp/{zigzag,contiguous,
// interleave}.py can_apply; vLLM v1/worker/gpu/pcp_manager.py and v1/worker/cp_utils.py; vllm-ascend
// worker/pcp_utils.py and attention/context_parallel/sfa_cp.py; Transformer Engine context_parallel.cu (THD).

#include "core/check.h"
#include "parallel/split_plan.h"

namespace sparsespan {

namespace {

constexpr std::string_view kOp = "split_plan";

struct EngineSchemes {
  CpFlavor flavor;
  std::string_view engine;
  std::string_view schemes;
};

constexpr EngineSchemes kEngines[] = {
    {CpFlavor::sglang, "SGLang", "zigzag, interleave and contiguous"},
    {CpFlavor::vllm, "vLLM", "zigzag_padded and ceil_chunk"},
    {CpFlavor::vllm_ascend, "vllm-ascend", "zigzag_padded, ceil_chunk and contiguous_flat"},
};

bool engine_has(CpFlavor flavor, CpScheme scheme) {
  switch (scheme) {
    case CpScheme::zigzag:
    case CpScheme::interleave:
    case CpScheme::contiguous: return flavor == CpFlavor::sglang;
    case CpScheme::zigzag_padded:
    case CpScheme::ceil_chunk: return flavor == CpFlavor::vllm || flavor == CpFlavor::vllm_ascend;
    case CpScheme::contiguous_flat: return flavor == CpFlavor::vllm_ascend;
    case CpScheme::thd_even: return false;
  }
  return false;
}

void refuse_missing_scheme(const CpBatch& b) {
  if (engine_has(b.flavor, b.scheme)) return;
  for (const auto& known : kEngines) {
    if (known.flavor == b.flavor) {
      refuse_value(kOp, "flavor", "is \"", name_of(b.flavor), "\", but ", known.engine, " has no ", name_of(b.scheme),
                   " split: it has ", known.schemes, "; flavor=None takes every scheme");
    }
  }
}

void refuse_sglang(const CpBatch& b) {
  const std::int64_t n = b.world_size;
  if (n < 2) {
    refuse_value(kOp, "world_size", "is 1, needs at least 2: SGLang turns context parallelism off for one rank; ",
                 "flavor=None plans it");
  }
  for (std::int64_t s = 0; s < b.requests(); ++s) {
    if (b.whole[s] == 0) continue;
    refuse_value(kOp, "row_kind", "makes request ", s, " a decode request: SGLang splits pure extend batches only and ",
                 "runs a mixed one without context parallelism; flavor=None replicates decode rows on every rank");
  }
  if (b.scheme == CpScheme::interleave || b.requests() == 0) {
    if (b.rows() >= n) return;
    refuse_value(kOp, "cu_seqlens", "counts ", b.rows(), " rows, needs at least world_size = ", n, ": SGLang runs a ",
                 "smaller batch without context parallelism; flavor=None splits it");
  }
  const bool zigzag = b.scheme == CpScheme::zigzag;
  const std::int64_t least = zigzag ? 2 * n : n;
  for (std::int64_t s = 0; s < b.requests(); ++s) {
    if (b.length(s) >= least) continue;
    refuse_value(kOp, "cu_seqlens", "gives request ", s, " ", b.length(s), " new rows, needs at least ",
                 zigzag ? "2 * world_size = " : "world_size = ", least, ": SGLang's ", name_of(b.scheme),
                 " runs the whole batch without context parallelism if any request is shorter; \"interleave\" needs ",
                 "only ", n, " rows in all, and flavor=None splits any length");
  }
}

void refuse_vllm(const CpBatch& b) {
  const bool ordered = b.scheme == CpScheme::zigzag_padded;
  bool prefill_seen = false;
  for (std::int64_t s = 0; s < b.requests(); ++s) {
    prefill_seen = prefill_seen || (b.whole[s] == 0 && b.length(s) > 0);
    if (b.whole[s] == 0) continue;
    if (ordered && prefill_seen) {
      refuse_value(kOp, "row_kind", "makes request ", s, " a decode request behind a prefill request: ",
                   "the head-tail split of vLLM and vllm-ascend wants all decode requests first; reorder the batch, or "
                   "use flavor=None, which takes any order");
    }
    if (!ordered && b.flavor == CpFlavor::vllm && b.real[s] > 1) {
      refuse_value(kOp, "row_kind", "makes request ", s, " a decode request of ", b.real[s], " rows, needs 1: ",
                   "vLLM's prefill context parallelism has no speculative decoding; flavor=None replicates them");
    }
  }
}

void refuse_thd(const CpBatch& b) {
  const std::int64_t unit = 2 * b.world_size;
  for (std::int64_t s = 0; s < b.requests(); ++s) {
    if (b.whole[s] != 0 || b.length(s) % unit == 0) continue;
    refuse_value(kOp, "cu_seqlens", "gives request ", s, " ", b.length(s),
                 " rows, needs a multiple of 2 * world_size = ", unit,
                 ": Transformer Engine's THD split cuts every sequence into equal chunks; pad the sequence, or ",
                 "use \"zigzag\", which splits any length");
  }
}

}  // namespace

void refuse_what_the_engine_refuses(const CpBatch& b) {
  if (b.flavor != CpFlavor::native) refuse_missing_scheme(b);
  if (b.scheme == CpScheme::thd_even) refuse_thd(b);
  if (b.flavor == CpFlavor::sglang) refuse_sglang(b);
  if (b.scheme == CpScheme::contiguous_flat) {
    if (b.flavor == CpFlavor::vllm_ascend && b.world_size < 2) {
      refuse_value(kOp, "world_size",
                   "is 1, needs at least 2: DSA-CP runs on the tensor-parallel group of vllm-ascend ",
                   "and is off for one rank; flavor=None plans it");
    }
    return;
  }
  if (b.flavor == CpFlavor::vllm || b.flavor == CpFlavor::vllm_ascend) refuse_vllm(b);
}

}  // namespace sparsespan
