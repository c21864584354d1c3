#pragma once

#include "core/tensor.h"

namespace sparsespan {

struct ToSlotsParams {
  Tensor indices;         // [T, K] int32, logical; packed when ks is given; -1 = none
  Tensor row_to_request;  // [T] int32 or int64; -1 = a padding row, all of whose indices are -1
  Tensor block_table;     // [B, max_blocks] pages
  Tensor ks;              // [T] packed row of the request's first key, or not given
  Tensor out;             // [T, K] int32 slots
  std::int64_t page_size = 0;
  Validate validate = Validate::full;  // trusted: one pass, so `out` may be partly written when it refuses
  int threads = 0;
};

// out = block_table[request, logical / page_size] * page_size + logical % page_size; -1 stays -1.
void to_slots(const ToSlotsParams& params);

}  // namespace sparsespan
