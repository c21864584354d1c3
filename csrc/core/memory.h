#pragma once

// What the machine's memory is like.

#include <cstdint>

namespace sparsespan {

// Whether so many bytes leave nothing of themselves in the last-level cache: who writes them does better to write past
// it. Decides about speed only, never about bits.
bool outgrows_caches(std::int64_t bytes);

}  // namespace sparsespan
