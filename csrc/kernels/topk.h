#pragma once

// The one pass of top-k that touches every score.

#include <cstdint>

namespace sparsespan {

struct TopkKernels {
  // Appends (key, first_index + i) of every score whose key is at least `floor`, i ascending, and returns how many.
  // Keys order like the values: -0.0 and +0.0 share one, NaN has the lowest, 1. *nan becomes the index of the first NaN
  // when there is one. Once `most_ties` >= 1 keys equal to the floor are in, further ones may be left out: where all
  // scores are equal, there is nothing more to gain from them. `keys` and `indices` have room for n.
  std::int64_t (*collect)(const float* scores, std::int64_t n, std::uint32_t floor, std::int64_t most_ties,
                          std::int32_t first_index, std::uint32_t* keys, std::int32_t* indices,
                          std::int64_t* nan) noexcept;
};

const TopkKernels& topk_kernels();

}  // namespace sparsespan
