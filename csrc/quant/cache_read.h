#pragma once

#include "core/tensor.h"
#include "quant/layout.h"
#include "quant/scale.h"

namespace sparsespan {

struct ReadKvParams {
  Tensor cache;  // paged, of `layout`
  Tensor slots;  // [n] or [R, C] slots, -1 = a row of zeros
  Tensor out;    // [slots.size(), dim] of the layout's decoded dtype
  KvLayout layout = KvLayout::fp8_656;
  std::int64_t page_size = 64;
  Validate validate = Validate::full;
  int threads = 0;
};

void read_kv(const ReadKvParams& params);

struct GatherIndexerKParams {
  Tensor cache;        // paged, of `layout`
  Tensor block_table;  // [B, max_blocks] page of each logical block; entries past a request's length are not read
  Tensor cu_seq_lens;  // [B + 1] ascending from 0: request b owns rows cu[b] .. cu[b + 1] - 1 of the output
  Tensor k;            // [S, 128]: e4m3 codes (index_132), bfloat16 or float32 as stored
  Tensor scale;        // [S] float32, index_132 only
  KvLayout layout = KvLayout::index_132;
  std::int64_t page_size = 64;
  Validate validate = Validate::full;
  int threads = 0;
};

// Checks everything but the outputs and returns S = cu_seq_lens[B], which sizes them.
std::int64_t gather_indexer_k_rows(const GatherIndexerKParams& params);
void gather_indexer_k(const GatherIndexerKParams& params);

struct ConvertKvParams {
  Tensor cache;  // paged, of layout `from`
  Tensor out;    // paged, of layout `to`, with the same pages and page size
  KvLayout from = KvLayout::bf16_576;
  KvLayout to = KvLayout::fp8_656;
  ScaleRule rule = ScaleRule::official;
  int threads = 0;
};

// Every token of every page, written or not: nothing in the data is refused.
void convert_kv(const ConvertKvParams& params);
// Layouts of one kind, a cache that fits; returns {pages, page_size} for the output.
PagedCache convert_kv_source(const ConvertKvParams& params);

}  // namespace sparsespan
