#pragma once

// Which rows of a group want which keys, and which keys therefore have to be staged. A group is a few tiles of rows; a
// tile's columns (heads of rows) are the bits of one word per key. Blocks of 256 keys lie at absolute places, so that a
// row meets its keys in the same blocks whatever rows stand beside it.

#include <cstdint>

#include "attention/engine.h"
#include "core/scratch.h"
#include "core/tensor.h"

namespace sparsespan {

inline constexpr std::int64_t kSetTiles = 8;     // tiles of a group: they share staged keys
inline constexpr std::int64_t kSetColumns = 64;  // columns of a tile

// A tile's part of a block: staged keys [first, last) of it; `all`: every column sees every one of them.
struct SetRange {
  std::int32_t first;
  std::int32_t last;
  bool all;
};

// One group after `build`.
struct KeySet {
  std::int64_t* kept;  // [padded keys]: keys of the units that some row wants, ascending; -1 where no row wants the key
  std::int64_t* starts;  // [blocks + 1]: block b's are kept[starts[b]] .. kept[starts[b + 1] - 1]
  std::uint64_t* seen;   // [kSetTiles][padded keys]: columns that see key kept[i]
  SetRange* ranges;      // [kSetTiles][blocks]
};

class KeySets {
 public:
  // Indices [T, K] are checked. `unit` keys stay together. heads: columns of a row; tile_rows * heads <= 64.
  KeySets(const Tensor& indices, const Tensor& topk_length, std::int64_t keys, std::int64_t unit, std::int64_t heads,
          std::int64_t tile_rows, std::int64_t most_groups);

  std::int64_t tile_rows() const { return tile_rows_; }
  std::int64_t group_rows() const { return tile_rows_ * kSetTiles; }
  std::int64_t blocks() const { return padded_ / kBlockKeys; }
  std::int64_t padded() const { return padded_; }
  // Groups whose sets fit in a few megabytes together; the constructor made room for so many.
  std::int64_t groups() const { return groups_; }
  KeySet operator[](std::int64_t place) const;
  // Fills place `place` with rows [first, last). A row that names a key twice is no set: it is left out and marked.
  void build(std::int64_t place, std::int64_t first, std::int64_t last, std::uint8_t* repeats) const;

 private:
  bool mark(std::int64_t row, std::uint64_t bits, std::uint64_t* words) const;
  void keep(const KeySet& set, std::int64_t tiles, std::int64_t rows) const;

  IntView<2> indices_;
  IntView<1> length_;
  bool has_length_;
  std::int64_t keys_;
  std::int64_t unit_;
  std::int64_t heads_;
  std::int64_t tile_rows_;
  std::int64_t padded_;
  std::int64_t groups_;
  Scratch<std::int64_t> kept_;
  Scratch<std::int64_t> starts_;
  Scratch<std::uint64_t> seen_;
  Scratch<SetRange> ranges_;
};

}  // namespace sparsespan
