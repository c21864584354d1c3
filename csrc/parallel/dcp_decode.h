#pragma once

#include <optional>

#include "parallel/dcp_combine.h"
#include "parallel/dcp_keys.h"
#include "parallel/dcp_layout.h"
#include "quant/layout.h"

namespace sparsespan {

struct DcpDecodeParams {
  Tensor q;         // [T, h, 576] float32 or bfloat16, this rank's heads (all N * h with replicate_q); with q_pe its
  Tensor q_pe;      // first 512 columns, q_pe [T, h, 64] the rest
  Tensor kv_cache;  // paged, this rank's shard
  KvLayout kv_layout = KvLayout::bf16_576;
  DcpSelection selection;
  float sm_scale = 0;
  std::int64_t d_v = 512;
  bool replicate_q = false;
  std::int64_t head_pad = 1;  // attended heads are rounded up to a multiple, with heads of zeros
  std::optional<bool> lanes;  // not given: where they make the bits the same for 1, 2, 4 and 8 ranks
  DcpCombineParams combine;   // without partial_out and partial_lse
  Validate validate = Validate::full;
};

// One decode step of this rank's heads over a KV cache that all ranks share: remap, gather of the query heads, sparse
// attention over the rank's own keys, merge.
void dcp_decode(Communicator& comm, const DcpLayout& layout, const DcpDecodeParams& params);

struct DcpPartialParams {
  Tensor q;  // [T, H, 576]: all heads
  Tensor q_pe;
  Tensor kv_cache;
  KvLayout kv_layout = KvLayout::bf16_576;
  DcpSelection selection;
  float sm_scale = 0;
  std::int64_t d_v = 512;
  bool lanes = false;
  Tensor out;  // [T, H, d_v]
  Tensor lse;  // [T, H]
  Validate validate = Validate::full;
  int threads = 0;
};

// The part between the exchanges: attention over the keys that `rank` owns.
void dcp_partial(const DcpLayout& layout, std::int64_t rank, const DcpPartialParams& params);

}  // namespace sparsespan
