#pragma once

// The passes of top-k: the one that touches every score, and those over what it lets through.

#include <cstdint>

namespace sparsespan {

struct KeyRange {
  std::uint32_t least;
  std::uint32_t greatest;
};

struct TopkKernels {
  // Appends (key, first_index + i) of every score whose key is at least `floor`, i ascending, and returns how many.
  // Keys order like the values: -0.0 and +0.0 share one, NaN has the lowest, 1. *nan becomes the index of the first NaN
  // when there is one. Once `most_ties` >= 1 keys equal to the floor are in, further ones may be left out: where all
  // scores are equal, there is nothing more to gain from them. `keys` and `indices` have room for n.
  std::int64_t (*collect)(const float* scores, std::int64_t n, std::uint32_t floor, std::int64_t most_ties,
                          std::int32_t first_index, std::uint32_t* keys, std::int32_t* indices,
                          std::int64_t* nan) noexcept;
  // Of n keys, one of them at least `floor`: the least that is, and the greatest. Null, as the next one is, where keys
  // are looked at one by one: then tables of their bits are quicker.
  KeyRange (*range)(const std::uint32_t* keys, std::int64_t n, std::uint32_t floor) noexcept;
  std::int64_t (*count_at_least)(const std::uint32_t* keys, std::int64_t n, std::uint32_t key) noexcept;
  // Keeps, in their order, the keys above `cut` and the first `ties` of those equal to it, with their indices; returns
  // how many.
  std::int64_t (*keep)(std::uint32_t* keys, std::int32_t* indices, std::int64_t n, std::uint32_t cut,
                       std::int64_t ties) noexcept;
};

const TopkKernels& topk_kernels();

}  // namespace sparsespan
