#pragma once

#include "parallel/transfer_plan.h"

namespace sparsespan {

// Refuses every TransferParams that transfer_plan cannot answer exactly.
void validate_transfer(const TransferParams& params);

}  // namespace sparsespan
