#pragma once

#include "core/tensor.h"
#include "parallel/dcp_layout.h"

namespace sparsespan {

struct RemapTopkParams {
  Tensor indices;       // [T, K] int32 or int64, logical positions, -1 = none
  Tensor context_lens;  // [T] or not given: an index must be below its row's length
  Tensor topk_length;   // [T] or not given: entries past it are never read
  std::int64_t rank = 0;
  Tensor out;     // [T, K] dtype of indices: this rank's local rows in the order of the input, then -1
  Tensor lanes;   // [T, K] dtype of indices, or not wanted: (position / S) % 8 beside each kept entry, then -1
  Tensor counts;  // [T] int32, or not wanted: kept entries
  int threads = 0;
  Validate validate = Validate::full;  // trusted: skips the scan of indices for values out of range
};

// mine = p >= 0 and owner(p) == rank; the mine are moved to the front in order. -1 is tested before any modulo.
void remap_topk(const DcpLayout& layout, const RemapTopkParams& params);

struct PackedRowsParams {
  Tensor indices;  // [T, K] int32 or int64, logical positions of one request, -1 = none
  Tensor out;      // [T, K] dtype of indices: rows of [rank-major gathered prefix | new tokens]
  std::int64_t prefix_len = 0;
  std::int64_t total_len = 0;  // prefix + new tokens: an index must be below it
  std::int64_t index_topk = 0;
  int threads = 0;
};

// p < prefix -> owner(p) * send + local(p); else N * send + (p - prefix), send = the padded prefix of one rank.
// Needs prefix_len + 1 >= index_topk: only then every row has a full top-k set and needs no causal crop.
void dcp_packed_rows(const DcpLayout& layout, const PackedRowsParams& params);

}  // namespace sparsespan
