#pragma once

// What one thread of sparse_mha works in, and the arithmetic of one tile and one block of staged keys.

#include <cstdint>

#include "attention/head_rows.h"
#include "attention/key_sets.h"
#include "attention/mha.h"
#include "attention/room.h"
#include "attention/state.h"
#include "kernels/attention.h"

namespace sparsespan {

// Sizes that every slot shares.
struct SetPlan {
  const SparseMhaParams& p;
  const AttentionKernels& kernels;
  const NarrowAttentionKernels* narrow;  // where q, k and v are bfloat16 and the level has its products
  std::int64_t group;                    // query heads per key head
  std::int64_t heads;                    // of them in a tile
  std::int64_t tile_rows;
  std::int64_t tiles;  // most tiles of a group
  std::int64_t k_stride;
  std::int64_t v_stride;
  std::int64_t o_stride;
  std::int64_t state_floats() const { return kSetColumns * (2 + o_stride); }
  std::int64_t dim() const { return p.q.shape[2]; }
  std::int64_t d_v() const { return p.v.shape[2]; }
};

SetPlan make_set_plan(const SparseMhaParams& p, std::int64_t group);

// A tile's columns: row c / heads, head c % heads.
struct SetTile {
  std::int64_t row;
  std::int64_t rows;
  std::int64_t head;
  std::int64_t heads;
  std::int64_t columns() const { return rows * heads; }
};

class SetRoom {
 public:
  static std::int64_t floats(const SetPlan& plan);
  SetRoom(const SetPlan& plan, float* at);

  void pack(std::int64_t place, const SetTile& tile) const;
  // Stages keys and values of one key head.
  void stage(const std::int64_t* keys, std::int64_t n, std::int64_t head);
  // Merges what the staged keys of `range` give into the tile's state.
  void attend(std::int64_t place, const SetTile& tile, const SetRange& range, const std::uint64_t* seen);
  void clear(std::int64_t place);
  void write(std::int64_t place, const SetTile& tile, const std::uint8_t* skip) const;

 private:
  void stage_values(std::int64_t row, const std::uint64_t* seen, std::uint64_t bit);
  void multiply(std::int64_t place, std::int64_t columns, const SetRange& range, const std::uint64_t* seen,
                State out) const;
  void attend_rows_apart(std::int64_t place, const SetTile& tile, const SetRange& range, const std::uint64_t* seen,
                         State out);
  float* queries(std::int64_t place) const { return q_ + place * q_floats_; }

  const SetPlan& plan_;
  HeadRows k_rows_;
  HeadRows v_rows_;
  float* q_;                 // [tiles]: panels [dim][panel], or pairs of 16 columns each
  std::int64_t q_floats_;    // of a tile
  float* k_;                 // [256][k_stride]
  float* v_;                 // [256][v_stride]
  float* s_;                 // [256][64]
  std::uint16_t* narrow_k_;  // the same of narrow products, 32 rows more
  std::uint16_t* narrow_v_;
  std::uint16_t* packed_v_;
  std::uint16_t* narrow_p_;      // [64][256]
  std::uint16_t* narrow_rows_;   // [16][k_stride]
  State states_[kSetTiles + 2];  // of the tiles, of one block, of one row
  bool started_[kSetTiles] = {};
  const std::int64_t* keys_ = nullptr;
  std::int64_t n_ = 0;
  std::int64_t head_ = 0;
  bool finite_ = true;
};

}  // namespace sparsespan
