#include "attention/room.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "core/convert.h"
#include "core/scratch.h"

namespace sparsespan {

namespace {

constexpr std::int64_t kAlignFloats = 16;

// A row stride that is an odd number of cache lines: a column strip of many rows then uses every L1 set.
std::int64_t odd_lines(std::int64_t floats) {
  return (round_up(floats, kAlignFloats) / kAlignFloats | 1) * kAlignFloats;
}

constexpr std::int64_t kNarrowDims = 32;  // narrow rows are padded to whole vectors
constexpr std::int64_t kNarrowCols = 16;  // narrow queries are packed so many together
constexpr std::int64_t kPackedKeys = 32;  // keys staged and packed at a time

constexpr int kLaneStates = 4;  // lane tree: one per level beside the result

std::int64_t num_states(const Plan& p) { return p.depth + 1 + (p.job.lanes ? kLaneStates : 0); }

// One output row.
std::int64_t row_floats(const Plan& p) { return round_up(p.o_stride, kAlignFloats); }

// The columns [first, last) of one panel: q[row][head][d] to to[d * panel + column], a strip of d at a time so that the
// cache lines it is scattered over stay in L1 until all columns have been there.
template <class T>
void pack_panel(const Plan& p, const Tile& t, const Tensor& q, std::int64_t first, std::int64_t last, float* to) {
  constexpr std::int64_t kStrip = 16;
  const std::int64_t panel = p.kernels.panel;
  const auto view = q.as<const T, 3>();
  const T* rows[kGroup];
  for (std::int64_t c = first; c < last; ++c) {
    rows[c - first] = view.row(row_id(p.job, t, c / t.heads), t.head + c % t.heads);
  }
  for (std::int64_t d = 0; d < view.shape[2]; d += kStrip) {
    const std::int64_t n = std::min(kStrip, view.shape[2] - d);
    for (std::int64_t j = 0; j < last - first; ++j) {
      float strip[kStrip];
      row_to_float(rows[j] + d, strip, n);
      for (std::int64_t i = 0; i < n; ++i) to[(d + i) * panel + j] = strip[i];
    }
  }
}

void pack_part(const Plan& p, const Tile& t, const Tensor& q, float* to) {
  const std::int64_t panel = p.kernels.panel;
  const std::int64_t cols = t.rows * t.heads;
  for (std::int64_t c = 0; c < cols; c += panel, to += panel * p.job.dim) {
    if (q.dtype == DType::bfloat16) {
      pack_panel<BFloat16>(p, t, q, c, std::min(cols, c + panel), to);
    } else {
      pack_panel<float>(p, t, q, c, std::min(cols, c + panel), to);
    }
  }
}

}  // namespace

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
  if (job.shared_values && job.q.dtype == DType::bfloat16 && job.source->narrow()) {
    p.narrow = narrow_attention_kernels();
    p.narrow_stride = round_up(job.dim, kNarrowDims);
  }
  const auto blocks = static_cast<std::uint64_t>(std::max<std::int64_t>(1, ceil_div(job.max_keys, kBlockKeys)));
  p.depth = std::bit_width(blocks - 1);
  return p;
}

State carve_state(const Plan& p, float* at) { return {at, at + p.padded, at + 2 * p.padded}; }

State Room::state(const Plan& p, int i) const { return carve_state(p, states + i * p.state_floats()); }

namespace {

// Floats for so many 16-bit values.
std::int64_t halves(std::int64_t n) { return round_up(ceil_div(n, 2), kAlignFloats); }

std::int64_t narrow_query_halves(const Plan& p) {
  // Rows are padded apart from each other: a tile of few heads has more of it than columns.
  return p.max_rows * round_up(ceil_div(p.cols, p.max_rows), kNarrowCols) * p.narrow_stride;
}

std::int64_t operand_floats(const Plan& p) {
  if (p.narrow == nullptr) {
    return round_up(p.padded * p.job.dim, kAlignFloats) +
           kBlockKeys * (p.k_stride + (p.job.shared_values ? 0 : p.v_stride));
  }
  return halves(narrow_query_halves(p)) + halves(kBlockKeys * p.narrow_stride) +
         halves(kBlockKeys * round_up(p.job.d_v, kAlignFloats)) + halves(kBlockKeys * kGroup) +
         halves(kNarrowCols * p.narrow_stride);
}

template <class T>
void clear_beyond(T* rows, std::int64_t count, std::int64_t width, std::int64_t stride) {
  for (std::int64_t i = 0; i < count; ++i) std::fill(rows + i * stride + width, rows + (i + 1) * stride, T{});
}

}  // namespace

std::int64_t room_floats(const Plan& p) {
  return round_up(operand_floats(p) + kBlockKeys * kGroup + p.padded + row_floats(p) + num_states(p) * p.state_floats(),
                  kAlignFloats);
}

std::int64_t room_ints(const Plan& p) { return round_up(p.job.list_capacity + p.max_rows, 8); }

Room carve_room(const Plan& p, float* at, std::int64_t* ints) {
  Room r{};
  const auto take = [&at](std::int64_t n) { return std::exchange(at, at + n); };
  const auto take_halves = [&](std::int64_t n) { return reinterpret_cast<std::uint16_t*>(take(halves(n))); };
  if (p.narrow == nullptr) {
    r.q = take(round_up(p.padded * p.job.dim, kAlignFloats));
    r.k = take(kBlockKeys * p.k_stride);
    r.v = p.job.shared_values ? r.k : take(kBlockKeys * p.v_stride);
    // Kernels may read a staged row up to its stride; what stands there reaches no result but should cost nothing.
    clear_beyond(r.k, kBlockKeys, p.job.dim, p.k_stride);
    if (!p.job.shared_values) clear_beyond(r.v, kBlockKeys, p.job.d_v, p.v_stride);
  } else {
    r.narrow_q = take_halves(narrow_query_halves(p));
    r.narrow_k = take_halves(kBlockKeys * p.narrow_stride);
    r.narrow_v = take_halves(kBlockKeys * round_up(p.job.d_v, kAlignFloats));
    r.narrow_p = take_halves(kBlockKeys * kGroup);
    r.narrow_rows = take_halves(kNarrowCols * p.narrow_stride);
    // Beyond the dimensions keys and queries are zero; staging never writes there.
    clear_beyond(r.narrow_k, kBlockKeys, p.job.dim, p.narrow_stride);
    clear_beyond(r.narrow_rows, kNarrowCols, p.job.dim, p.narrow_stride);
  }
  r.s = take(kBlockKeys * kGroup);
  r.limits = take(p.padded);
  r.row = take(row_floats(p));
  r.states = at;
  r.keys.list = ints;
  r.keys.limits = ints + p.job.list_capacity;
  return r;
}

std::int64_t row_id(const AttentionJob& job, const Tile& t, std::int64_t i) {
  return job.order == nullptr ? t.first + i : job.order[t.first + i];
}

namespace {

void pack_narrow_queries(const Plan& p, const Tile& t, const Room& room) {
  const Tensor& q = p.job.q;
  const Tensor& pe = p.job.q_pe;
  std::uint16_t* to = room.narrow_q;
  for (std::int64_t i = 0; i < t.rows; ++i) {
    const std::int64_t row = row_id(p.job, t, i);
    for (std::int64_t h = 0; h < t.heads; h += kNarrowCols, to += kNarrowCols * p.narrow_stride) {
      const std::int64_t count = std::min(kNarrowCols, t.heads - h);
      for (std::int64_t j = 0; j < count; ++j) {
        std::uint16_t* at = room.narrow_rows + j * p.narrow_stride;
        std::copy_n(q.as<const std::uint16_t, 3>().row(row, t.head + h + j), q.shape[2], at);
        if (pe) std::copy_n(pe.as<const std::uint16_t, 3>().row(row, t.head + h + j), pe.shape[2], at + q.shape[2]);
      }
      p.narrow->pack_queries(room.narrow_rows, p.narrow_stride, to);  // columns beyond count: whatever was there
    }
  }
}

// A few keys at a time, so that what is packed has just been staged.
void stage_and_pack(const Plan& p, const Tile& t, const Room& room, std::int64_t first, std::int64_t n) {
  for (std::int64_t j = 0; j < n; j += kPackedKeys) {
    const std::int64_t count = std::min(kPackedKeys, n - j);
    std::uint16_t* const k = room.narrow_k + j * p.narrow_stride;
    p.job.source->stage_narrow(t, room.keys, first + j, count, k, p.narrow_stride);
    p.narrow->pack_values(k, p.narrow_stride, count, p.job.d_v, room.narrow_v + j * kNarrowCols);
  }
  std::fill(room.narrow_k + n * p.narrow_stride, room.narrow_k + round_up(n, kPackedKeys) * p.narrow_stride,
            std::uint16_t{0});
}

}  // namespace

void set_empty_columns(const Plan& p, std::int64_t begin, std::int64_t end, State s) {
  std::fill(s.m + begin, s.m + end, kMinusInf);
  std::fill(s.l + begin, s.l + end, 0.0F);
  std::fill(s.o + begin * p.o_stride, s.o + end * p.o_stride, 0.0F);
}

void attend_narrow(const Plan& p, const Tile& t, const Room& room, std::int64_t first, std::int64_t n,
                   std::int64_t ahead, State out) {
  const void* rows[kBlockKeys];
  const std::int64_t bytes = p.job.source->places(room.keys, first + n, ahead, rows);
  const std::int64_t calls = t.rows * ceil_div(t.heads, kGroup);
  std::int64_t call = 0;
  stage_and_pack(p, t, room, first, n);
  std::int64_t packed = n;
  for (std::int64_t i = 0; i < t.rows; ++i) {
    const std::int64_t seen = std::clamp<std::int64_t>(room.keys.limits[i] - first, 0, n);
    if (seen == 0) {
      set_empty_columns(p, i * t.heads, (i + 1) * t.heads, out);
      continue;
    }
    if (seen != packed) p.narrow->pack_values(room.narrow_k, p.narrow_stride, seen, p.job.d_v, room.narrow_v);
    packed = seen;
    const std::uint16_t* q = room.narrow_q + i * round_up(t.heads, kNarrowCols) * p.narrow_stride;
    for (std::int64_t h = 0; h < t.heads; h += kGroup) {
      const std::int64_t c = i * t.heads + h;
      const std::int64_t from = ahead * call / calls;
      const std::int64_t to = ahead * ++call / calls;
      p.narrow->attend({.q = q + h * p.narrow_stride,
                        .k = room.narrow_k,
                        .v = room.narrow_v,
                        .k_stride = p.narrow_stride,
                        .cols = std::min(kGroup, t.heads - h),
                        .d_v = p.job.d_v,
                        .n = seen,
                        .sm_scale = p.job.sm_scale,
                        .s = room.s,
                        .p = room.narrow_p,
                        .m = out.m + c,
                        .l = out.l + c,
                        .o = out.o + c * p.o_stride,
                        .o_stride = p.o_stride,
                        .ahead = rows + from,
                        .ahead_rows = bytes == 0 ? 0 : to - from,
                        .ahead_bytes = bytes});
    }
  }
}

void pack_queries(const Plan& p, const Tile& t, const Room& room) {
  if (p.narrow != nullptr) return pack_narrow_queries(p, t, room);
  const std::int64_t panel = p.kernels.panel;
  const std::int64_t cols = t.rows * t.heads;
  const std::int64_t dim = p.job.dim;
  if (cols % panel != 0) {
    float* last = room.q + cols / panel * panel * dim;
    std::fill(last, last + panel * dim, 0.0F);
  }
  pack_part(p, t, p.job.q, room.q);
  if (p.job.q_pe) pack_part(p, t, p.job.q_pe, room.q + p.job.q.shape[2] * panel);
}

}  // namespace sparsespan
