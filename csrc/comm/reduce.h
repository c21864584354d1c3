#pragma once

#include <vector>

#include "comm/request.h"

namespace sparsespan {

// out[i] = parts[0][i] + parts[1][i] + ... in this order (or the maximum; a NaN stays). `out` may be one of the parts.
// bfloat16 is summed in float32 and rounded once.
void reduce_in_order(DType dtype, Reduce reduce, const std::vector<const std::byte*>& parts, std::byte* out,
                     std::int64_t bytes);

}  // namespace sparsespan
