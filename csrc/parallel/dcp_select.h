#pragma once

#include <string>

#include "comm/communicator.h"
#include "core/tensor.h"
#include "indexer/candidates.h"
#include "parallel/dcp_layout.h"

namespace sparsespan {

// Where index-K lies, and what ranks exchange for it.
enum class DcpIndexK : std::uint8_t {
  replicated,      // whole on every rank: nothing is exchanged
  sharded,         // like the KV cache; (score, id) of every rank's best k go to all
  sharded_routed,  // the same by way of each row's merging rank
  unite,           // "union": every rank keeps its own best k; approximate
  gathered,        // like the KV cache; brought together, then every rank scores all of it
};
DcpIndexK parse_dcp_index_k(std::string_view op, std::string_view text);
std::string_view name_of(DcpIndexK design);

struct DcpSelectParams {
  Tensor q;             // [B, next_n, Hi, 128] or [T, Hi, 128], the same on every rank
  Tensor index_cache;   // paged, of index_layout: this rank's shard, or the whole with DcpIndexK::replicated
  Tensor weights;       // [T, Hi] float32
  Tensor context_lens;  // [B] or [B, next_n]: logical lengths, as in paged_select
  Tensor block_table;   // [B, W] one column per virtual page
  std::int64_t topk = 0;
  std::string index_layout = "index_132";
  DcpIndexK design = DcpIndexK::replicated;
  indexer::NanRule nan = indexer::NanRule::raise;
  Tensor out;  // [T, topk] int32, logical
  Validate validate = Validate::full;
  int threads = 0;
  CommOptions comm;
};

// The indexer's choice for every row over a context that the ranks share.
void dcp_select(Communicator& comm, const DcpLayout& layout, const DcpSelectParams& params);

}  // namespace sparsespan
