#pragma once

// The engine's own: sizes shared by all threads of a call, and the memory that one thread works in.

#include "attention/engine.h"
#include "attention/state.h"
#include "kernels/attention.h"

namespace sparsespan {

// Columns that go through the kernel together: their queries, scores and outputs share the L2 cache with a block.
inline constexpr std::int64_t kGroup = 64;

// Sizes that every slot shares.
struct Plan {
  const AttentionJob& job;
  const AttentionKernels& kernels;
  std::int64_t cols = 0;      // most columns of a tile
  std::int64_t padded = 0;    // cols in whole panels
  std::int64_t max_rows = 0;  // most rows of a tile
  std::int64_t k_stride = 0;
  std::int64_t v_stride = 0;
  std::int64_t o_stride = 0;
  int depth = 0;                                   // states that fold needs beside its result
  const NarrowAttentionKernels* narrow = nullptr;  // products of bfloat16, where the level has and the job allows them
  std::int64_t narrow_stride = 0;                  // of its keys and queries
  std::int64_t state_floats() const { return 2 * padded + cols * o_stride; }
};

Plan make_plan(const AttentionJob& job);

// What one thread works in.
struct Room {
  float* q;       // panels of the tile's transposed queries
  float* k;       // [256][k_stride]
  float* v;       // [256][v_stride], or k
  float* s;       // [256][kGroup]
  float* limits;  // [padded]
  float* row;     // one output row
  float* states;  // depth + 1, or with lanes 2 * 4 more
  // Of narrow products, instead of q, k and v.
  std::uint16_t* narrow_q;     // [row][16 heads] packed
  std::uint16_t* narrow_k;     // [256][narrow_stride]
  std::uint16_t* narrow_v;     // packed
  std::uint16_t* narrow_p;     // [kGroup][256]
  std::uint16_t* narrow_rows;  // [16][narrow_stride] query rows
  TileKeys keys;
  State state(const Plan& p, int i) const;
};

State carve_state(const Plan& p, float* at);

std::int64_t room_floats(const Plan& p);
std::int64_t room_ints(const Plan& p);
Room carve_room(const Plan& p, float* at, std::int64_t* ints);

std::int64_t row_id(const AttentionJob& job, const Tile& t, std::int64_t i);
// Queries of the tile into panels [dim][panel], zero where there is no column; or into the narrow form.
void pack_queries(const Plan& p, const Tile& t, const Room& room);
// Narrow products of one block of keys, row by row: a row sees the staged keys up to its own limit, and nothing else.
// Meanwhile `ahead` keys after them are fetched into the caches.
void attend_narrow(const Plan& p, const Tile& t, const Room& room, std::int64_t first, std::int64_t n,
                   std::int64_t ahead, State out);
void set_empty_columns(const Plan& p, std::int64_t begin, std::int64_t end, State s);

}  // namespace sparsespan
