#pragma once

// Block tables, slots and allocator locations under DCP. "Page" is B rows on one rank, "virtual page" the B * N
// positions that share one page id on all ranks.

#include <cstdint>
#include <vector>

#include "core/tensor.h"
#include "parallel/dcp_layout.h"

namespace sparsespan {

struct DcpSlotParams {
  Tensor positions;       // [T] logical, -1 = padding row
  Tensor row_to_request;  // [T], or not given when the table has one row
  Tensor block_table;     // [R, W] page ids, one column per virtual page
  Tensor out;             // [T] int64: page * B + row in the page, or -1 when another rank owns the position
  std::int64_t rank = 0;
};
// A position beyond the table or on a page that is not there (id < 0) is refused on every rank, not only its owner.
void dcp_slot_mapping(const DcpLayout& layout, const DcpSlotParams& params);

struct DcpWrites {
  std::vector<std::int64_t> rows;   // rows of the step that this rank writes
  std::vector<std::int64_t> slots;  // their physical rows
};
// `locations` [T]: virtual locations of the new tokens, -1 = padding. The same location twice is refused.
DcpWrites dcp_writes(const DcpLayout& layout, const Tensor& locations, std::int64_t rank);
// Fixed shape for graph replay: out [T] int64, rows of other ranks and padding go to `dummy`.
void dcp_fixed_writes(const DcpLayout& layout, const Tensor& locations, const Tensor& out, std::int64_t rank,
                      std::int64_t dummy);

// `locations` [R, L]: request -> virtual location of each position, -1 past its end. out [R, ceil(L / span)]:
// page ids, -1 past the end; span = B * N for the sharded KV, B for an index cache that every rank holds whole.
void dcp_page_table(const DcpLayout& layout, const Tensor& locations, const Tensor& out, bool replicated);

// Rows that rank holds of the positions [start, start + L) stored at `locations` [L].
std::vector<std::int64_t> dcp_chunk_rows(const DcpLayout& layout, const Tensor& locations, std::int64_t start,
                                         std::int64_t rank);

struct DcpReplicatedParams {
  Tensor block_table;  // [R, W] page ids, -1 = none
  Tensor lengths;      // [R] or not given: the table of a request of length 0 is all 0
  Tensor out;          // [R, W * N] dtype of block_table: pages of the index cache that every rank holds whole
  std::int64_t sub_blocks = 1;
};
void dcp_replicated_table(const DcpLayout& layout, const DcpReplicatedParams& params);

struct DcpBlockGather {
  std::vector<std::int64_t> ids;      // pages to send, ascending, each once
  std::vector<std::int64_t> inverse;  // [R, W] place of each page in ids, -1 = not sent
};
// `lengths` [R], or not given: only pages that hold a position below it are sent.
DcpBlockGather dcp_block_gather(const DcpLayout& layout, const Tensor& block_table, const Tensor& lengths);

}  // namespace sparsespan
