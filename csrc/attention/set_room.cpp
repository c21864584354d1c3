#include "attention/set_room.h"

#include <algorithm>
#include <utility>

#include "core/convert.h"
#include "core/scratch.h"

namespace sparsespan {

namespace {

constexpr std::int64_t kLine = 16;        // floats
constexpr std::int64_t kNarrowStep = 32;  // dimensions, and keys, that narrow kernels take together
constexpr std::int64_t kNarrowCols = 16;
constexpr std::int64_t kAhead = 8;  // rows fetched before their turn

std::int64_t odd_lines(std::int64_t floats) { return (ceil_div(floats, kLine) | 1) * kLine; }

// Floats that hold so many 16-bit values.
std::int64_t halves(std::int64_t n) { return round_up(ceil_div(n, 2), kLine); }

std::int64_t query_floats(const SetPlan& p) {
  if (p.narrow != nullptr) return halves(kSetColumns * p.k_stride);
  return round_up(round_up(kSetColumns, p.kernels.panel) * p.dim(), kLine);
}

std::int64_t operand_floats(const SetPlan& p) {
  if (p.narrow == nullptr) return kBlockKeys * (p.k_stride + p.v_stride);
  return halves((kBlockKeys + kNarrowStep) * p.k_stride) + halves(kBlockKeys * p.v_stride) +
         halves(kBlockKeys * round_up(p.d_v(), kLine)) + halves(kSetColumns * kBlockKeys) +
         halves(kNarrowCols * p.k_stride);
}

std::int64_t rounded_state(const SetPlan& p) { return round_up(p.state_floats(), kLine); }

}  // namespace

SetPlan make_set_plan(const SparseMhaParams& params, std::int64_t group) {
  SetPlan p{.p = params, .kernels = attention_kernels(), .narrow = nullptr, .group = group};
  const auto is_narrow = [](const Tensor& t) { return t.dtype == DType::bfloat16; };
  if (is_narrow(params.q) && is_narrow(params.k) && is_narrow(params.v)) p.narrow = narrow_attention_kernels();
  p.k_stride = p.narrow != nullptr ? round_up(p.dim(), kNarrowStep) : odd_lines(p.dim());
  p.v_stride = p.narrow != nullptr ? round_up(p.d_v(), kNarrowStep) : odd_lines(p.d_v());
  p.o_stride = round_up(p.d_v(), kLine);
  return p;
}

std::int64_t SetRoom::floats(const SetPlan& p) {
  return p.tiles * query_floats(p) + operand_floats(p) + kBlockKeys * kSetColumns + (p.tiles + 2) * rounded_state(p);
}

SetRoom::SetRoom(const SetPlan& p, float* at)
    : plan_(p), k_rows_(p.p.k), v_rows_(p.p.v), q_(at), q_floats_(query_floats(p)) {
  at += p.tiles * q_floats_;
  const auto take = [&at](std::int64_t n) { return std::exchange(at, at + n); };
  const auto take_halves = [&](std::int64_t n) { return reinterpret_cast<std::uint16_t*>(take(halves(n))); };
  float* const operands = at;
  if (p.narrow == nullptr) {
    k_ = take(kBlockKeys * p.k_stride);
    v_ = take(kBlockKeys * p.v_stride);
  } else {
    narrow_k_ = take_halves((kBlockKeys + kNarrowStep) * p.k_stride);
    narrow_v_ = take_halves(kBlockKeys * p.v_stride);
    packed_v_ = take_halves(kBlockKeys * p.o_stride);
    narrow_p_ = take_halves(kSetColumns * kBlockKeys);
    narrow_rows_ = take_halves(kNarrowCols * p.k_stride);
  }
  std::fill(operands, at, 0.0F);  // beyond the dimensions rows stay zero
  s_ = take(kBlockKeys * kSetColumns);
  for (std::int64_t i = 0; i < p.tiles + 2; ++i) {
    float* const state = take(rounded_state(p));
    const std::int64_t place = i < p.tiles ? i : kSetTiles + i - p.tiles;
    states_[place] = {state, state + kSetColumns, state + 2 * kSetColumns};
  }
}

void SetRoom::pack(std::int64_t place, const SetTile& tile) const {
  const Tensor& q = plan_.p.q;
  if (plan_.narrow == nullptr) {
    const AttentionJob job{.q = q, .q_pe = {}, .dim = plan_.dim(), .out = {}, .lse = {}, .max_logits = {}};
    Room room{};
    room.q = queries(place);
    pack_queries({job, plan_.kernels}, {.first = tile.row, .rows = tile.rows, .head = tile.head, .heads = tile.heads},
                 room);
    return;
  }
  const auto rows = q.as<const std::uint16_t, 3>();
  auto* to = reinterpret_cast<std::uint16_t*>(queries(place));
  for (std::int64_t c = 0; c < tile.columns(); c += kNarrowCols, to += kNarrowCols * plan_.k_stride) {
    for (std::int64_t j = c; j < std::min(c + kNarrowCols, tile.columns()); ++j) {
      std::copy_n(rows.row(tile.row + j / tile.heads, tile.head + j % tile.heads), plan_.dim(),
                  narrow_rows_ + (j - c) * plan_.k_stride);
    }
    plan_.narrow->pack_queries(narrow_rows_, plan_.k_stride, to);  // columns beyond the last: whatever was there
  }
}

// The value row of staged key j, zero where `seen` is given and lacks the bit.
void SetRoom::stage_values(std::int64_t j, const std::uint64_t* seen, std::uint64_t bit) {
  const bool wanted = keys_[j] >= 0 && (seen == nullptr || (seen[j] & bit) != 0);
  const std::int64_t d_v = plan_.d_v();
  if (plan_.narrow != nullptr) {
    std::uint16_t* const to = narrow_v_ + j * plan_.v_stride;
    if (!wanted) {
      std::fill_n(to, d_v, std::uint16_t{0});
    } else {
      std::copy_n(v_rows_.narrow(keys_[j], head_), d_v, to);
    }
    return;
  }
  float* const to = v_ + j * plan_.v_stride;
  if (!wanted) {
    std::fill_n(to, d_v, 0.0F);
  } else {
    v_rows_.load(keys_[j], head_, to);
  }
}

void SetRoom::stage(const std::int64_t* keys, std::int64_t n, std::int64_t head) {
  keys_ = keys, n_ = n, head_ = head, finite_ = true;
  const std::int64_t dim = plan_.dim();
  const std::int64_t d_v = plan_.d_v();
  for (std::int64_t j = 0; j < n; ++j) {
    if (j + kAhead < n && keys[j + kAhead] >= 0) {
      k_rows_.prefetch(keys[j + kAhead], head);
      v_rows_.prefetch(keys[j + kAhead], head);
    }
    stage_values(j, nullptr, 0);
    if (keys[j] < 0) continue;  // the key's scores reach nobody
    if (plan_.narrow == nullptr) {
      k_rows_.load(keys[j], head, k_ + j * plan_.k_stride);
      finite_ = finite_ && plan_.kernels.finite_f32(v_ + j * plan_.v_stride, d_v);
      continue;
    }
    std::copy_n(k_rows_.narrow(keys[j], head), dim, narrow_k_ + j * plan_.k_stride);
    finite_ = finite_ && plan_.kernels.finite_bf16(narrow_v_ + j * plan_.v_stride, d_v);
  }
  if (plan_.narrow != nullptr && finite_) plan_.narrow->pack_values(narrow_v_, plan_.v_stride, n, d_v, packed_v_);
}

void SetRoom::multiply(std::int64_t place, std::int64_t columns, const SetRange& range, const std::uint64_t* seen,
                       State out) const {
  const std::int64_t first = range.first;
  const std::int64_t n = range.last - first;
  const std::uint64_t* const bits = range.all ? nullptr : seen + first;
  if (plan_.narrow != nullptr) {
    plan_.narrow->attend({.q = reinterpret_cast<const std::uint16_t*>(queries(place)),
                          .k = narrow_k_ + first * plan_.k_stride,
                          .v = packed_v_ + first * kNarrowCols,
                          .k_stride = plan_.k_stride,
                          .cols = columns,
                          .d_v = plan_.d_v(),
                          .n = n,
                          .seen = bits,
                          .sm_scale = plan_.p.sm_scale,
                          .s = s_,
                          .p = narrow_p_,
                          .m = out.m,
                          .l = out.l,
                          .o = out.o,
                          .o_stride = plan_.o_stride});
    return;
  }
  plan_.kernels.attend({.q = queries(place),
                        .k = k_ + first * plan_.k_stride,
                        .v = v_ + first * plan_.v_stride,
                        .limits = nullptr,
                        .seen = bits,
                        .cols = columns,
                        .dim = plan_.dim(),
                        .d_v = plan_.d_v(),
                        .n = n,
                        .k_stride = plan_.k_stride,
                        .v_stride = plan_.v_stride,
                        .sm_scale = plan_.p.sm_scale,
                        .s = s_,
                        .m = out.m,
                        .l = out.l,
                        .o = out.o,
                        .o_stride = plan_.o_stride});
}

// Some value is infinite or NaN: a row that does not see it must not multiply it, not even by 0. So each row's turn has
// the values of all other keys zero, which leaves its own sums as they are.
void SetRoom::attend_rows_apart(std::int64_t place, const SetTile& tile, const SetRange& range,
                                const std::uint64_t* seen, State out) {
  const State one = states_[kSetTiles + 1];
  for (std::int64_t i = 0; i < tile.rows; ++i) {
    for (std::int64_t j = 0; j < n_; ++j) stage_values(j, seen, std::uint64_t{1} << (i * tile.heads));
    if (plan_.narrow != nullptr) {
      plan_.narrow->pack_values(narrow_v_, plan_.v_stride, n_, plan_.d_v(), packed_v_);
    }
    multiply(place, tile.columns(), range, seen, one);
    for (std::int64_t c = i * tile.heads; c < (i + 1) * tile.heads; ++c) {
      out.m[c] = one.m[c];
      out.l[c] = one.l[c];
      std::copy_n(one.o + c * plan_.o_stride, plan_.o_stride, out.o + c * plan_.o_stride);
    }
  }
}

void SetRoom::attend(std::int64_t place, const SetTile& tile, const SetRange& range, const std::uint64_t* seen) {
  const State whole = states_[place];
  // A state merged into an empty one is that state.
  const State part = started_[place] ? states_[kSetTiles] : whole;
  if (finite_) {
    multiply(place, tile.columns(), range, seen, part);
  } else {
    attend_rows_apart(place, tile, range, seen, part);
  }
  if (std::exchange(started_[place], true)) {
    plan_.kernels.merge({.m = whole.m,
                         .l = whole.l,
                         .o = whole.o,
                         .m_other = part.m,
                         .l_other = part.l,
                         .o_other = part.o,
                         .cols = tile.columns(),
                         .padded_cols = kSetColumns,
                         .d_v = plan_.d_v(),
                         .o_stride = plan_.o_stride});
  }
}

void SetRoom::clear(std::int64_t place) { started_[place] = false; }

void SetRoom::write(std::int64_t place, const SetTile& tile, const std::uint8_t* skip) const {
  const SparseMhaParams& p = plan_.p;
  const State s = states_[place];
  const std::int64_t d_v = plan_.d_v();
  for (std::int64_t c = 0; c < tile.columns(); ++c) {
    const std::int64_t row = tile.row + c / tile.heads;
    const std::int64_t head = tile.head + c % tile.heads;
    if (skip[row] != 0) continue;
    const bool empty = !started_[place] || s.l[c] == 0.0F;
    float* const o = s.o + c * plan_.o_stride;
    const float inverse = empty ? 0.0F : 1.0F / s.l[c];
    // + 0: products of keys that only other rows see may have turned a -0 into 0, or not.
    for (std::int64_t d = 0; d < d_v; ++d) o[d] = empty ? 0.0F : o[d] * inverse + 0.0F;
    with_float_type(p.out.dtype, [&]<class T>(T) {
      if constexpr (!std::is_same_v<T, Float8E4M3>) row_from_float(o, p.out.as<T, 3>().row(row, head), d_v);
    });
    p.lse.as<float, 2>()(row, head) = empty ? kMinusInf : lse_of(s.m[c], s.l[c]);
  }
}

}  // namespace sparsespan
