#pragma once

// The KV path of prefill context parallelism: every rank ends up with the cache rows of the whole batch.

#include <memory>

#include "parallel/cp_rows.h"
#include "quant/layout.h"
#include "quant/scale.h"

namespace sparsespan {

struct GatherKvParams {
  Tensor c_kv;          // [n, 512] float32 or bfloat16, this rank's rows in local order: the latent after its norm
  Tensor k_pe;          // [n, 64] the rope key, already rotated
  Tensor k_index;       // [n, 128] the indexer key, or not given: the layer has none of its own
  Tensor kv_cache;      // paged, of `layout`
  Tensor index_cache;   // paged, of `index_layout`; given exactly when k_index is
  Tensor slot_mapping;  // [T] or [pad_to] slot of each row of the batch, -1 = skip the row
  KvLayout layout = KvLayout::fp8_656;
  KvLayout index_layout = KvLayout::index_132;
  std::int64_t page_size = 64;
  ScaleRule rule = ScaleRule::official;
  ScaleRule index_rule = ScaleRule::official;
  Validate validate = Validate::full;
  int threads = 0;
};

// One all_gather of padded_len tokens per rank, a token as the caches store it: latent | rope | index key, quantised by
// the rank that has the row. The work's end writes every row of the batch into this rank's caches. All refusals come
// before the gather starts; the caches are untouched until it has ended well, then wholly written.
std::shared_ptr<CpWork> igather_kv_and_cache(Communicator& comm, const PlanPtr& plan, const GatherKvParams& params,
                                             CommOptions options);

}  // namespace sparsespan
