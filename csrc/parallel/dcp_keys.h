#pragma once

// Which keys of a selection lie on one rank, and where in its cache.

#include <string_view>

#include "core/scratch.h"
#include "core/tensor.h"
#include "parallel/dcp_layout.h"
#include "quant/layout.h"

namespace sparsespan {

struct DcpSelection {
  Tensor indices;         // [T, K] or [T, 1, K] int32 or int64, logical positions, -1 = none
  Tensor topk_length;     // [T] or not given: entries past it are never read
  Tensor context_lens;    // [T] or not given: keys that the row may name
  Tensor row_to_request;  // [T] rows of block_table, -1 = a row without keys; or not given when it has one row
  Tensor block_table;     // [R, W] page ids, one column per virtual page
};

// A rank's own keys of every row: slots of its cache in the order of the selection, then whatever. Construction checks
// everything that the data can be wrong in, on every rank alike, whoever owns a key.
class DcpKeys {
 public:
  DcpKeys(std::string_view op, const DcpLayout& layout, std::int64_t rank, const DcpSelection& selection,
          const PagedCache& cache, bool lanes, Validate validate, int threads);

  Tensor slots() const;   // [T, most keys of a row] int64
  Tensor counts() const;  // [T] int32
  Tensor lanes() const;   // [T, most keys of a row] like indices, or not present

 private:
  std::int64_t rows_ = 0;
  std::int64_t width_ = 0;
  std::int64_t most_ = 0;
  DType lane_type_ = DType::none;
  bool has_lanes_ = false;
  Scratch<std::int64_t> slots_;
  Scratch<std::int64_t> lanes_;
  Scratch<std::int32_t> counts_;
};

}  // namespace sparsespan
