#pragma once

#include <cstdint>
#include <string>

#include "parallel/dcp_layout.h"

namespace sparsespan {

struct DcpCapacityParams {
  std::int64_t memory_bytes = 0;    // per rank, for KV and index-K alone
  std::int64_t reserved_bytes = 0;  // per rank, taken off first: workspaces that grow with DCP
  std::int64_t kv_bytes = 0;        // per token and layer
  std::int64_t index_bytes = 0;     // per token and index layer; 0 = no indexer (V3.1)
  std::int64_t index_shards = 0;    // ranks that share one copy of index-K: 1 = replicated, N = sharded
  std::int64_t kv_layers = 1;
  std::int64_t index_layers = 1;
  std::int64_t reserved_pages = 0;  // pages that hold no request (a dummy page)
};

struct DcpCapacity {
  std::int64_t pages = 0;            // usable virtual pages = pages per rank
  std::int64_t tokens_per_rank = 0;  // pages * B: KV rows on one rank
  std::int64_t tokens = 0;           // pages * B * N: context that the group holds, what an engine reports
  std::int64_t page_bytes = 0;       // of one page on one rank, all layers, index-K included
  std::int64_t baseline_tokens = 0;  // the same memory on one rank without DCP
  double gain = 0;                   // (kv + ik) / (kv / N + ik / shards): tokens against one rank, before rounding
};

DcpCapacity dcp_capacity(const DcpLayout& layout, const DcpCapacityParams& params);
// Bytes of a layout by name; `index` says which kind is asked for.
std::int64_t kv_bytes_of(std::string_view op, std::string_view argument, const std::string& name, bool index);

struct DcpHeads {
  std::int64_t local = 0;     // heads of one rank before the gather: H / tp
  std::int64_t gathered = 0;  // local * N
  std::int64_t padded = 0;    // gathered, rounded up to a multiple of `multiple`
};
DcpHeads dcp_heads(const DcpLayout& layout, std::int64_t heads, std::int64_t tp, std::int64_t multiple);

}  // namespace sparsespan
