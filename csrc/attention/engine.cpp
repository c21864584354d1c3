#include "attention/engine.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "attention/state.h"
#include "core/convert.h"
#include "core/parallel.h"
#include "core/scratch.h"
#include "kernels/attention.h"

namespace sparsespan {

namespace {

// Columns that go through the kernel together: their queries, scores and outputs share the L2 cache with a block.
constexpr std::int64_t kGroup = 64;
constexpr std::int64_t kAlignFloats = 16;

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
  int depth = 0;  // states that fold needs beside its result
  std::int64_t state_floats() const { return 2 * padded + cols * o_stride; }
};

// A row stride that is an odd number of cache lines: a column strip of many rows then uses every L1 set.
std::int64_t odd_lines(std::int64_t floats) {
  return (round_up(floats, kAlignFloats) / kAlignFloats | 1) * kAlignFloats;
}

Plan make_plan(const AttentionJob& job) {
  Plan p{job, attention_kernels()};
  for (const Tile& t : job.tiles) {
    p.cols = std::max(p.cols, t.rows * t.heads);
    p.max_rows = std::max(p.max_rows, t.rows);
  }
  p.padded = round_up(p.cols, p.kernels.panel);
  p.k_stride = odd_lines(std::max(job.dim, job.d_v));
  p.v_stride = job.shared_values ? p.k_stride : odd_lines(job.d_v);
  p.o_stride = round_up(job.d_v, kAlignFloats);
  const auto blocks = static_cast<std::uint64_t>(std::max<std::int64_t>(1, ceil_div(job.max_keys, kBlockKeys)));
  p.depth = std::bit_width(blocks - 1);
  return p;
}

State carve_state(const Plan& p, float* at) { return {at, at + p.padded, at + 2 * p.padded}; }

// What one thread works in.
struct Room {
  float* q;       // panels of the tile's transposed queries
  float* k;       // [256][k_stride]
  float* v;       // [256][v_stride], or k
  float* s;       // [256][kGroup]
  float* limits;  // [padded]
  float* row;     // one query or output row
  float* states;  // depth + 1, or with lanes 2 * 4 more
  TileKeys keys;
  State state(const Plan& p, int i) const { return carve_state(p, states + i * p.state_floats()); }
};

constexpr int kLaneStates = 4;  // lane tree: one per level beside the result

std::int64_t num_states(const Plan& p) { return p.depth + 1 + (p.job.lanes ? kLaneStates : 0); }

std::int64_t row_floats(const Plan& p) { return round_up(std::max(p.job.dim, p.o_stride), kAlignFloats); }

std::int64_t room_floats(const Plan& p) {
  const std::int64_t staged = kBlockKeys * (p.k_stride + (p.job.shared_values ? 0 : p.v_stride));
  return round_up(p.padded * p.job.dim, kAlignFloats) + staged + kBlockKeys * kGroup + p.padded + row_floats(p) +
         num_states(p) * p.state_floats();
}

Room carve_room(const Plan& p, float* at, std::int64_t* ints) {
  Room r{};
  const auto take = [&at](std::int64_t n) { return std::exchange(at, at + n); };
  r.q = take(round_up(p.padded * p.job.dim, kAlignFloats));
  r.k = take(kBlockKeys * p.k_stride);
  r.v = p.job.shared_values ? r.k : take(kBlockKeys * p.v_stride);
  r.s = take(kBlockKeys * kGroup);
  r.limits = take(p.padded);
  r.row = take(row_floats(p));
  r.states = at;
  r.keys.list = ints;
  r.keys.limits = ints + p.job.list_capacity;
  // Kernels may read a staged row up to its stride; what stands there reaches no result but should cost nothing.
  std::memset(r.k, 0, static_cast<std::size_t>(kBlockKeys * p.k_stride) * sizeof(float));
  std::memset(r.v, 0, static_cast<std::size_t>(kBlockKeys * p.v_stride) * sizeof(float));
  return r;
}

std::int64_t row_id(const AttentionJob& job, const Tile& t, std::int64_t i) {
  return job.order == nullptr ? t.first + i : job.order[t.first + i];
}

void load_row(const Tensor& q, std::int64_t row, std::int64_t head, float* out, const AttentionKernels& kernels) {
  const std::int64_t offset = row * q.strides[0] + head * q.strides[1];
  if (q.dtype == DType::bfloat16) {
    kernels.load_bf16(static_cast<const std::uint16_t*>(q.data) + offset, out, q.shape[2]);
  } else {
    std::copy_n(static_cast<const float*>(q.data) + offset, q.shape[2], out);
  }
}

// Queries of the tile into panels [dim][panel], zero where there is no column.
void pack_queries(const Plan& p, const Tile& t, const Room& room) {
  const std::int64_t panel = p.kernels.panel;
  const std::int64_t cols = t.rows * t.heads;
  const std::int64_t dim = p.job.dim;
  if (cols % panel != 0) {
    float* last = room.q + cols / panel * panel * dim;
    std::fill(last, last + panel * dim, 0.0F);
  }
  for (std::int64_t c = 0; c < cols; ++c) {
    const std::int64_t row = row_id(p.job, t, c / t.heads);
    const std::int64_t head = t.head + c % t.heads;
    load_row(p.job.q, row, head, room.row, p.kernels);
    if (p.job.q_pe) load_row(p.job.q_pe, row, head, room.row + p.job.q.shape[2], p.kernels);
    float* to = room.q + c / panel * panel * dim + c % panel;
    for (std::int64_t d = 0; d < dim; ++d) to[d * panel] = room.row[d];
  }
}

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

void attend_block(const Plan& p, const Tile& t, const Room& room, std::int64_t first, std::int64_t n, State out) {
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

void merge(const Plan& p, const Tile& t, State to, State other) {
  p.kernels.merge({.m = to.m,
                   .l = to.l,
                   .o = to.o,
                   .m_other = other.m,
                   .l_other = other.l,
                   .o_other = other.o,
                   .cols = t.rows * t.heads,
                   .padded_cols = p.padded,
                   .d_v = p.job.d_v,
                   .o_stride = p.o_stride});
}

// The state of blocks [lo, hi) of the keys [begin, end).
void fold(const Plan& p, const Tile& t, const Room& room, std::int64_t begin, std::int64_t end, std::int64_t lo,
          std::int64_t hi, State out, int depth) {
  if (hi - lo == 1) {
    const std::int64_t first = begin + lo * kBlockKeys;
    attend_block(p, t, room, first, std::min(kBlockKeys, end - first), out);
    return;
  }
  const auto half = static_cast<std::int64_t>(std::bit_floor(static_cast<std::uint64_t>(hi - lo - 1)));
  fold(p, t, room, begin, end, lo, lo + half, out, depth);
  const State right = room.state(p, depth);
  fold(p, t, room, begin, end, lo + half, hi, right, depth + 1);
  merge(p, t, out, right);
}

void set_empty(const Plan& p, const Tile& t, State s) {
  std::fill_n(s.m, p.padded, kMinusInf);
  std::fill_n(s.l, p.padded, 0.0F);
  std::fill_n(s.o, t.rows * t.heads * p.o_stride, 0.0F);
}

void fold_range(const Plan& p, const Tile& t, const Room& room, std::int64_t begin, std::int64_t end, State out) {
  if (begin == end) {
    set_empty(p, t, out);
  } else {
    fold(p, t, room, begin, end, 0, ceil_div(end - begin, kBlockKeys), out, 0);
  }
}

// (m, l, o) -> (m, lse, out).
void normalise(const Plan& p, const Tile& t, State s) {
  for (std::int64_t c = 0; c < t.rows * t.heads; ++c) {
    const float inverse = s.l[c] == 0.0F ? 0.0F : 1.0F / s.l[c];
    float* o = s.o + c * p.o_stride;
    for (std::int64_t d = 0; d < p.o_stride; ++d) o[d] = s.l[c] == 0.0F ? 0.0F : o[d] * inverse;
    s.l[c] = lse_of(s.m[c], s.l[c]);
  }
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
    normalise(p, t, out);
    return true;
  }
  const State right = room.state(p, p.depth + 1 + level);
  if (!fold_lanes(p, t, room, lane, 2 * stride, out, level + 1)) {
    return fold_lanes(p, t, room, lane + stride, 2 * stride, out, level + 1);
  }
  if (fold_lanes(p, t, room, lane + stride, 2 * stride, right, level + 1)) merge_normalised(p, t, out, right);
  return true;
}

// Writes the tile's normalised state; the sink enters here and nowhere else.
void write_tile(const Plan& p, const Tile& t, const Room& room, State s) {
  const AttentionJob& job = p.job;
  for (std::int64_t c = 0; c < t.rows * t.heads; ++c) {
    const std::int64_t row = row_id(job, t, c / t.heads);
    const std::int64_t head = t.head + c % t.heads;
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
    if (job.max_logits) job.max_logits.as<float, 2>()(row, head) = s.m[c];
  }
}

void attend_tile(const Plan& p, const Tile& t, Room& room) {
  const State out = room.state(p, p.depth);
  p.job.source->open(t, room.keys);
  pack_queries(p, t, room);
  if (p.job.lanes) {
    if (!fold_lanes(p, t, room, 0, 1, out, 0)) {
      set_empty(p, t, out);
      normalise(p, t, out);
    }
  } else {
    fold_range(p, t, room, 0, room.keys.count, out);
    normalise(p, t, out);
  }
  write_tile(p, t, room, out);
}

}  // namespace

std::int64_t heads_per_tile(std::int64_t tiles, std::int64_t heads, int threads) {
  std::int64_t take = heads;
  const std::int64_t wanted = 2L * team_size(tiles * heads, threads);
  while (take > kGroup && tiles * ceil_div(heads, take) < wanted) take = round_up(ceil_div(take, 2), kGroup / 2);
  return take;
}

void run_attention(const AttentionJob& job) {
  if (job.tiles.empty()) return;
  const Plan p = make_plan(job);
  const auto tiles = static_cast<std::int64_t>(job.tiles.size());
  const int team = team_size(tiles, job.threads);
  const Scratch<float> floats(team * round_up(room_floats(p), kAlignFloats));
  const std::int64_t ints_per_room = round_up(job.list_capacity + p.max_rows, 8);
  const Scratch<std::int64_t> ints(team * ints_per_room);
  std::vector<Room> rooms;
  for (int i = 0; i < team; ++i) {
    rooms.push_back(
        carve_room(p, floats.data() + i * round_up(room_floats(p), kAlignFloats), ints.data() + i * ints_per_room));
  }
  parallel_for(tiles, job.threads,
               [&](std::int64_t i, int slot) { attend_tile(p, job.tiles[static_cast<std::size_t>(i)], rooms[slot]); });
}

}  // namespace sparsespan
