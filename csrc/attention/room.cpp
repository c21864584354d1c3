#include "attention/room.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "core/scratch.h"

namespace sparsespan {

namespace {

constexpr std::int64_t kAlignFloats = 16;

// A row stride that is an odd number of cache lines: a column strip of many rows then uses every L1 set.
std::int64_t odd_lines(std::int64_t floats) {
  return (round_up(floats, kAlignFloats) / kAlignFloats | 1) * kAlignFloats;
}

constexpr int kLaneStates = 4;  // lane tree: one per level beside the result

std::int64_t num_states(const Plan& p) { return p.depth + 1 + (p.job.lanes ? kLaneStates : 0); }

std::int64_t row_floats(const Plan& p) { return round_up(std::max(p.job.dim, p.o_stride), kAlignFloats); }

void load_row(const Tensor& q, std::int64_t row, std::int64_t head, float* out, const AttentionKernels& kernels) {
  const std::int64_t offset = row * q.strides[0] + head * q.strides[1];
  if (q.dtype == DType::bfloat16) {
    kernels.load_bf16(static_cast<const std::uint16_t*>(q.data) + offset, out, q.shape[2]);
  } else {
    std::copy_n(static_cast<const float*>(q.data) + offset, q.shape[2], out);
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
  const auto blocks = static_cast<std::uint64_t>(std::max<std::int64_t>(1, ceil_div(job.max_keys, kBlockKeys)));
  p.depth = std::bit_width(blocks - 1);
  return p;
}

State carve_state(const Plan& p, float* at) { return {at, at + p.padded, at + 2 * p.padded}; }

State Room::state(const Plan& p, int i) const { return carve_state(p, states + i * p.state_floats()); }

std::int64_t room_floats(const Plan& p) {
  const std::int64_t staged = kBlockKeys * (p.k_stride + (p.job.shared_values ? 0 : p.v_stride));
  return round_up(round_up(p.padded * p.job.dim, kAlignFloats) + staged + kBlockKeys * kGroup + p.padded +
                      row_floats(p) + num_states(p) * p.state_floats(),
                  kAlignFloats);
}

std::int64_t room_ints(const Plan& p) { return round_up(p.job.list_capacity + p.max_rows, 8); }

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

}  // namespace sparsespan
