#pragma once

#include <string_view>
#include <vector>

#include "comm/communicator.h"
#include "core/scratch.h"
#include "parallel/dcp_layout.h"
#include "quant/layout.h"

namespace sparsespan {

// Index keys of whole requests, one behind the other in logical order: what `select` takes.
struct GatheredIndexK {
  Tensor k;        // [sum of lengths, 128] as stored
  Tensor k_scale;  // [sum of lengths] float32, or not present
  Scratch<std::byte> keys{0};
  Scratch<float> scales{0};
};

// Every rank sends its rows of each request, padded to whole rounds of the layout, and puts them into order.
// `lengths` [B] tokens of each request, whose pages in `table` [B, W] have been checked.
GatheredIndexK gather_index_k(std::string_view op, Communicator& comm, const DcpLayout& layout, const PagedCache& cache,
                              const IntView<2>& table, const std::vector<std::int64_t>& lengths,
                              const CommOptions& options);

}  // namespace sparsespan
