#pragma once

#include "core/tensor.h"
#include "quant/layout.h"
#include "quant/scale.h"

namespace sparsespan {

struct ConcatAndCacheMlaParams {
  Tensor c_kv;          // [T, 512] float32 or bfloat16: the latent after its norm
  Tensor k_pe;          // [T, 64] float32 or bfloat16: the rope key, already rotated
  Tensor cache;         // paged, of `layout`
  Tensor slot_mapping;  // [T] slots, -1 = skip the row
  KvLayout layout = KvLayout::fp8_656;
  std::int64_t page_size = 64;
  ScaleRule rule = ScaleRule::official;
  Validate validate = Validate::full;
  int threads = 0;
};

// Stores row t at slot_mapping[t].
void concat_and_cache_mla(const ConcatAndCacheMlaParams& params);

struct IndexerKQuantAndCacheParams {
  Tensor k;             // [T, 128] float32 or bfloat16
  Tensor cache;         // paged, of `layout`
  Tensor slot_mapping;  // [T] slots, -1 = skip the row
  KvLayout layout = KvLayout::index_132;
  std::int64_t page_size = 64;
  ScaleRule rule = ScaleRule::official;
  Validate validate = Validate::full;
  int threads = 0;
};

void indexer_k_quant_and_cache(const IndexerKQuantAndCacheParams& params);

// "fp8_656" is a KV layout, "index_132" one of index keys: an op takes one kind.
void require_layout_kind(std::string_view op, std::string_view argument, KvLayout layout, bool index);

}  // namespace sparsespan
