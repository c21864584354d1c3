#pragma once

#include "parallel/volume.h"

namespace sparsespan {

// Refuses every VolumeParams that volume cannot answer exactly.
void validate_volume(const VolumeParams& params);

}  // namespace sparsespan
