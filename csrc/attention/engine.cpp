#include "attention/engine.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "attention/room.h"
#include "core/convert.h"
#include "core/parallel.h"
#include "core/scratch.h"

namespace sparsespan {

namespace {

// True when some column of the tile does not see all keys [first, first + n).
bool set_limits(const Tile& t, const Room& room, std::int64_t first, std::int64_t n) {
  bool limited = false;
  for (std::int64_t i = 0; i < t.rows; ++i) {
    const std::int64_t seen = std::clamp<std::int64_t>(room.keys.limits[i] - first, 0, n);
    limited = limited || seen < n;
    std::fill_n(room.limits + i * t.heads, t.heads, static_cast<float>(seen));
  }
  return limited;
}

// Keys [first, first + 256) of those that end at `end`.
void attend_block(const Plan& p, const Tile& t, const Room& room, std::int64_t first, std::int64_t end, State out) {
  const std::int64_t n = std::min(kBlockKeys, end - first);
  if (p.narrow != nullptr) {
    return attend_narrow(p, t, room, first, n, std::min(kBlockKeys, end - first - n), out);
  }
  const std::int64_t cols = t.rows * t.heads;
  p.job.source->stage(t, room.keys, first, n, room.k, p.k_stride, p.job.shared_values ? nullptr : room.v, p.v_stride);
  const bool limited = set_limits(t, room, first, n);
  for (std::int64_t c = 0; c < cols; c += kGroup) {
    p.kernels.attend({.q = room.q + c * p.job.dim,
                      .k = room.k,
                      .v = room.v,
                      .limits = limited ? room.limits + c : nullptr,
                      .cols = std::min(kGroup, cols - c),
                      .dim = p.job.dim,
                      .d_v = p.job.d_v,
                      .n = n,
                      .k_stride = p.k_stride,
                      .v_stride = p.v_stride,
                      .sm_scale = p.job.sm_scale,
                      .s = room.s,
                      .m = out.m + c,
                      .l = out.l + c,
                      .o = out.o + c * p.o_stride,
                      .o_stride = p.o_stride});
  }
}

// Columns [begin, end) of a tile; begin is a multiple of a vector's lanes.
struct Columns {
  std::int64_t begin;
  std::int64_t end;
};

Columns all_columns(const Tile& t) { return {0, t.rows * t.heads}; }

void merge(const Plan& p, Columns c, State to, State other) {
  p.kernels.merge({.m = to.m + c.begin,
                   .l = to.l + c.begin,
                   .o = to.o + c.begin * p.o_stride,
                   .m_other = other.m + c.begin,
                   .l_other = other.l + c.begin,
                   .o_other = other.o + c.begin * p.o_stride,
                   .cols = c.end - c.begin,
                   .padded_cols = p.padded - c.begin,
                   .d_v = p.job.d_v,
                   .o_stride = p.o_stride});
}

// The state of blocks [lo, hi) of the keys [begin, end).
void fold(const Plan& p, const Tile& t, const Room& room, std::int64_t begin, std::int64_t end, std::int64_t lo,
          std::int64_t hi, State out, int depth) {
  if (hi - lo == 1) {
    attend_block(p, t, room, begin + lo * kBlockKeys, end, out);
    return;
  }
  const auto half = static_cast<std::int64_t>(std::bit_floor(static_cast<std::uint64_t>(hi - lo - 1)));
  fold(p, t, room, begin, end, lo, lo + half, out, depth);
  const State right = room.state(p, depth);
  fold(p, t, room, begin, end, lo + half, hi, right, depth + 1);
  merge(p, all_columns(t), out, right);
}

// The same of all blocks; there is at least one key.
void fold_range(const Plan& p, const Tile& t, const Room& room, std::int64_t begin, std::int64_t end, State out) {
  fold(p, t, room, begin, end, 0, ceil_div(end - begin, kBlockKeys), out, 0);
}

// (m, l, o) -> (m, lse, out) of one column.
void normalise(const Plan& p, State s, std::int64_t c) {
  float* o = s.o + c * p.o_stride;
  if (s.l[c] == 0.0F) {
    std::fill_n(o, p.o_stride, 0.0F);
  } else {
    p.kernels.mix(o, 1.0F / s.l[c], o, 0.0F, p.o_stride);
  }
  s.l[c] = lse_of(s.m[c], s.l[c]);
}

void merge_normalised(const Plan& p, const Tile& t, State to, State other) {
  for (std::int64_t c = 0; c < t.rows * t.heads; ++c) {
    const MergeWeights w = merge_weights(to.l[c], other.l[c]);
    p.kernels.mix(to.o + c * p.o_stride, w.a, other.o + c * p.o_stride, w.b, p.o_stride);
    to.l[c] = w.lse;
    to.m[c] = std::max(to.m[c], other.m[c]);
  }
}

// The subtree of lanes lane, lane + stride, ...: normalised into `out`; false when no key is in it.
bool fold_lanes(const Plan& p, const Tile& t, const Room& room, int lane, int stride, State out, int level) {
  if (stride == kDcpLanes) {
    if (room.keys.lane_begin[lane] == room.keys.lane_begin[lane + 1]) return false;
    fold_range(p, t, room, room.keys.lane_begin[lane], room.keys.lane_begin[lane + 1], out);
    for (std::int64_t c = 0; c < t.rows * t.heads; ++c) normalise(p, out, c);
    return true;
  }
  const State right = room.state(p, p.depth + 1 + level);
  if (!fold_lanes(p, t, room, lane, 2 * stride, out, level + 1)) {
    return fold_lanes(p, t, room, lane + stride, 2 * stride, out, level + 1);
  }
  if (fold_lanes(p, t, room, lane + stride, 2 * stride, right, level + 1)) merge_normalised(p, t, out, right);
  return true;
}

// Writes the tile's state, normalising it unless lanes have done so; the sink enters here and nowhere else.
void write_tile(const Plan& p, const Tile& t, Columns columns, const Room& room, State s) {
  const AttentionJob& job = p.job;
  for (std::int64_t c = columns.begin; c < columns.end; ++c) {
    const std::int64_t row = row_id(job, t, c / t.heads);
    const std::int64_t head = t.head + c % t.heads;
    if (!job.lanes) normalise(p, s, c);
    const float lse = s.l[c];
    const float* o = s.o + c * p.o_stride;
    if (job.attn_sink != nullptr) {
      const float factor = sink_factor(job.attn_sink[head * job.sink_stride], lse);
      for (std::int64_t d = 0; d < job.d_v; ++d) room.row[d] = o[d] * factor;
      o = room.row;
    }
    with_float_type(job.out.dtype, [&]<class T>(T) {
      if constexpr (!std::is_same_v<T, Float8E4M3>) row_from_float(o, job.out.as<T, 3>().row(row, head), job.d_v);
    });
    job.lse.as<float, 2>()(row, head) = lse;
    // The running maximum may pass over a NaN score; the sum never does.
    if (job.max_logits)
      job.max_logits.as<float, 2>()(row, head) = std::isnan(lse) && !std::isinf(s.m[c]) ? lse : s.m[c];
  }
}

// A tile without keys takes the time of its zeros.
void write_empty(const Plan& p, const Tile& t) {
  const AttentionJob& job = p.job;
  for (std::int64_t c = 0; c < t.rows * t.heads; ++c) {
    const std::int64_t row = row_id(job, t, c / t.heads);
    const std::int64_t head = t.head + c % t.heads;
    with_float_type(job.out.dtype, [&]<class T>(T) {
      if constexpr (!std::is_same_v<T, Float8E4M3>) std::fill_n(job.out.as<T, 3>().row(row, head), job.d_v, T{});
    });
    job.lse.as<float, 2>()(row, head) = kMinusInf;
    if (job.max_logits) job.max_logits.as<float, 2>()(row, head) = kMinusInf;
  }
}

void attend_tile(const Plan& p, const Tile& t, Room& room) {
  const State out = room.state(p, p.depth);
  p.job.source->open(t, room.keys);
  if (room.keys.count == 0) return write_empty(p, t);
  pack_queries(p, t, room);
  if (p.job.lanes) {
    fold_lanes(p, t, room, 0, 1, out, 0);
  } else {
    fold_range(p, t, room, 0, room.keys.count, out);
  }
  write_tile(p, t, all_columns(t), room, out);
}

// Rooms for the threads of one parallel_for.
class Rooms {
 public:
  Rooms(const Plan& p, int team) : floats_(team * room_floats(p)), ints_(team * room_ints(p)) {
    for (int i = 0; i < team; ++i) {
      rooms_.push_back(carve_room(p, floats_.data() + i * room_floats(p), ints_.data() + i * room_ints(p)));
    }
  }
  Room& operator[](int slot) { return rooms_[static_cast<std::size_t>(slot)]; }

 private:
  Scratch<float> floats_;
  Scratch<std::int64_t> ints_;
  std::vector<Room> rooms_;
};

// Few tiles for many threads: each tile's blocks are cut into chunks of a power of two, whose states are subtrees of
// the tile's tree. Splitting at such chunks changes no bit.
class Chunks {
 public:
  Chunks(const Plan& p, std::int64_t chunk_blocks)
      : p_(p),
        blocks_(chunk_blocks),
        per_tile_(ceil_div(ceil_div(p.job.max_keys, kBlockKeys), chunk_blocks)),
        states_(tiles() * per_tile_ * p.state_floats()),
        used_(tiles()) {}

  std::int64_t tasks() const { return tiles() * per_tile_; }
  void attend(std::int64_t task, Room& room) const {
    const std::int64_t i = task / per_tile_;
    const Tile& t = p_.job.tiles[static_cast<std::size_t>(i)];
    p_.job.source->open(t, room.keys);
    const std::int64_t blocks = ceil_div(room.keys.count, kBlockKeys);
    const std::int64_t lo = task % per_tile_ * blocks_;
    if (lo == 0) used_.data()[i] = ceil_div(blocks, blocks_);
    if (lo >= blocks) return;
    pack_queries(p_, t, room);
    const std::int64_t hi = std::min(blocks, lo + blocks_);
    fold(p_, t, room, 0, std::min(room.keys.count, hi * kBlockKeys), lo, hi, state(task), 0);
  }
  // Columns of different heads have nothing to do with each other: a tile's end is shared out too.
  std::int64_t ends() const { return tiles() * parts(); }
  void finish(std::int64_t task, const Room& room) const {
    const std::int64_t i = task / parts();
    const Tile& t = p_.job.tiles[static_cast<std::size_t>(i)];
    const std::int64_t first = task % parts() * kEndColumns;
    const Columns columns = {first, std::min(first + kEndColumns, t.rows * t.heads)};
    if (columns.begin >= columns.end) return;
    if (used_.data()[i] == 0) {
      if (first == 0) write_empty(p_, t);
      return;
    }
    merge_chunks(columns, i * per_tile_, i * per_tile_ + used_.data()[i]);
    write_tile(p_, t, columns, room, state(i * per_tile_));
  }

 private:
  std::int64_t parts() const { return ceil_div(p_.cols, kEndColumns); }
  std::int64_t tiles() const { return static_cast<std::int64_t>(p_.job.tiles.size()); }
  State state(std::int64_t task) const { return carve_state(p_, states_.data() + task * p_.state_floats()); }
  void merge_chunks(Columns columns, std::int64_t lo, std::int64_t hi) const {
    if (hi - lo == 1) return;
    const auto half = static_cast<std::int64_t>(std::bit_floor(static_cast<std::uint64_t>(hi - lo - 1)));
    merge_chunks(columns, lo, lo + half);
    merge_chunks(columns, lo + half, hi);
    merge(p_, columns, state(lo), state(lo + half));
  }

  static constexpr std::int64_t kEndColumns = 32;
  const Plan& p_;
  std::int64_t blocks_;
  std::int64_t per_tile_;
  Scratch<float> states_;
  Scratch<std::int64_t> used_;
};

TileSwitch switch_of(const Plan& p) { return p.narrow == nullptr ? TileSwitch{} : p.narrow->tiles; }

}  // namespace

std::int64_t heads_per_tile(std::int64_t tasks, std::int64_t heads, int threads) {
  std::int64_t take = heads;
  const std::int64_t wanted = team_size(2 * tasks * heads, threads);
  while (take > kGroup / 2 && tasks * ceil_div(heads, take) < wanted) take = round_up(ceil_div(take, 2), kGroup / 2);
  return take;
}

void run_attention(const AttentionJob& job) {
  if (job.tiles.empty()) return;
  const Plan p = make_plan(job);
  const auto tiles = static_cast<std::int64_t>(job.tiles.size());
  const std::int64_t blocks = ceil_div(job.max_keys, kBlockKeys);
  const int team = team_size(tiles * std::max<std::int64_t>(1, blocks), job.threads);
  Rooms rooms(p, team);
  if (job.lanes || team == 1 || blocks < 2 || tiles >= 2L * team) {
    parallel_for(tiles, job.threads, [&](std::int64_t i, int slot) {
      const KernelScope scope(switch_of(p));
      attend_tile(p, job.tiles[static_cast<std::size_t>(i)], rooms[slot]);
    });
    return;
  }
  const auto chunk_blocks = std::bit_ceil(static_cast<std::uint64_t>(ceil_div(tiles * blocks, 2L * team)));
  const Chunks chunks(p, static_cast<std::int64_t>(chunk_blocks));
  parallel_for(chunks.tasks(), job.threads, [&](std::int64_t i, int slot) {
    const KernelScope scope(switch_of(p));
    chunks.attend(i, rooms[slot]);
  });
  parallel_for(chunks.ends(), job.threads, [&](std::int64_t i, int slot) {
    const KernelScope scope;
    chunks.finish(i, rooms[slot]);
  });
}

}  // namespace sparsespan
