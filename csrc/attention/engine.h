#pragma once

// The one road to softmax attention. Every op of this family cuts its rows into tiles, says where a tile's keys lie
// (KeySource), and calls run_attention.
//
// A tile is a few query rows times a range of heads that share their keys; each (row, head) is a column. Its key list
// is cut into blocks of 256, always from the list's own beginning. A block gives a state (m, l, o) from nothing; states
// are merged in a fixed binary tree over the block numbers: tree(lo, hi) splits at the largest power of two below hi -
// lo. So a column's bits depend on its query and its key list alone, and blocks may go to different threads.

#include <cstdint>
#include <vector>

#include "core/tensor.h"

namespace sparsespan {

inline constexpr std::int64_t kBlockKeys = 256;
inline constexpr int kDcpLanes = 8;

struct Tile {
  std::int64_t first = 0;  // place of the first row in AttentionJob::order, or the row itself without one
  std::int64_t rows = 1;
  std::int64_t head = 0;  // heads [head, head + heads)
  std::int64_t heads = 1;
  std::int64_t request = 0;  // for the KeySource
};

// A tile's keys, as its KeySource sees them. Scratch of one slot.
struct TileKeys {
  std::int64_t* list = nullptr;    // room for list_capacity entries
  std::int64_t count = 0;          // keys in all
  std::int64_t* limits = nullptr;  // [rows]: row i sees keys [0, limits[i]); each <= count
  std::int64_t lane_begin[kDcpLanes + 1] = {};
};

class KeySource {
 public:
  KeySource() = default;
  KeySource(const KeySource&) = delete;
  KeySource& operator=(const KeySource&) = delete;
  virtual ~KeySource() = default;
  // Sets count and limits (and list, lane_begin as the source needs them).
  virtual void open(const Tile& tile, TileKeys& keys) const = 0;
  // Writes keys [first, first + n) as float32 rows; v is null when values are the keys' first columns.
  virtual void stage(const Tile& tile, const TileKeys& keys, std::int64_t first, std::int64_t n, float* k,
                     std::int64_t k_stride, float* v, std::int64_t v_stride) const = 0;
  // True when every key is bfloat16 (stored so, or decoded so), values being the keys' first columns.
  virtual bool narrow() const { return false; }
  // The same keys as bfloat16 rows of which nothing beyond the dimensions is written; only when narrow().
  virtual void stage_narrow(const Tile& /*tile*/, const TileKeys& /*keys*/, std::int64_t /*first*/, std::int64_t /*n*/,
                            std::uint16_t* /*k*/, std::int64_t /*k_stride*/) const {}
  // Where those keys lie, to be fetched ahead, and the bytes of each; 0 when fetching them does not pay.
  virtual std::int64_t places(const TileKeys& /*keys*/, std::int64_t /*first*/, std::int64_t /*n*/,
                              const void** /*rows*/) const {
    return 0;
  }
};

struct AttentionJob {
  Tensor q;     // [T, H, dim] float32 or bfloat16; or its first columns, when q_pe is given
  Tensor q_pe;  // [T, H, rest] same dtype, or not given
  std::int64_t dim = 0;
  std::int64_t d_v = 0;
  bool shared_values = false;  // values are the keys' first d_v columns
  float sm_scale = 0;
  const float* attn_sink = nullptr;  // [H] or null
  std::int64_t sink_stride = 1;
  bool lanes = false;  // per-lane partials, merged in the tree of strides 4, 2, 1
  const KeySource* source = nullptr;
  std::vector<Tile> tiles = {};
  const std::int64_t* order = nullptr;  // [T] row ids by place, or null
  std::int64_t max_keys = 0;            // no tile has more
  std::int64_t list_capacity = 0;
  Tensor out;         // [T, H, d_v] float32 or bfloat16
  Tensor lse;         // [T, H] float32
  Tensor max_logits;  // [T, H] float32, or not given
  int threads = 0;
};

void run_attention(const AttentionJob& job);

// How many heads a tile should take so that `tasks` tiles of all heads keep the threads busy: all of them, or fewer, in
// steps that keep a kernel's panels full. Without lanes a tile's blocks count as tasks of their own. Changes no bit.
std::int64_t heads_per_tile(std::int64_t tasks, std::int64_t heads, int threads);

}  // namespace sparsespan
