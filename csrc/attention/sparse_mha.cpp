// Two ways. Rows whose indices name each key at most once, that is all rows that a top-k makes, are sets: neighbouring
// rows share staged keys (KeySets, SetRoom). A key that a row names twice counts twice; such a row goes its own way, by
// its list, through the engine. Which way a row goes depends on its own indices alone.
#include <algorithm>
#include <vector>

#include "attention/checks.h"
#include "attention/engine.h"
#include "attention/head_rows.h"
#include "attention/index_lists.h"
#include "attention/key_sets.h"
#include "attention/mha.h"
#include "attention/set_room.h"
#include "core/op_scope.h"
#include "core/parallel.h"
#include "core/scratch.h"

namespace sparsespan {

namespace {

constexpr std::string_view kOp = "sparse_mha";

class ListedKeys final : public KeySource {
 public:
  ListedKeys(const SparseMhaParams& p, std::int64_t group)
      : k_(p.k), v_(p.v), lists_(p.indices, p.topk_length, {}), group_(group) {}

  void open(const Tile& tile, TileKeys& keys) const override { lists_.compact(tile.first, keys); }

  void stage(const Tile& tile, const TileKeys& keys, std::int64_t first, std::int64_t n, float* k,
             std::int64_t k_stride, float* v, std::int64_t v_stride) const override {
    const std::int64_t head = tile.head / group_;
    for (std::int64_t j = 0; j < n; ++j) {
      k_.load(keys.list[first + j], head, k + j * k_stride);
      v_.load(keys.list[first + j], head, v + j * v_stride);
    }
  }

 private:
  HeadRows k_;
  HeadRows v_;
  IndexLists lists_;
  std::int64_t group_;
};

void attend_lists(const SparseMhaParams& p, std::int64_t group, const std::uint8_t* repeats) {
  const ListedKeys source(p, group);
  AttentionJob job{.q = p.q,
                   .q_pe = {},
                   .dim = p.q.shape[2],
                   .d_v = p.v.shape[2],
                   .sm_scale = p.sm_scale,
                   .source = &source,
                   .max_keys = p.indices.shape[1],
                   .list_capacity = p.indices.shape[1],
                   .out = p.out,
                   .lse = p.lse,
                   .max_logits = {},
                   .threads = p.threads};
  for (std::int64_t t = 0; t < p.q.shape[0]; ++t) {
    if (repeats[t] == 0) continue;
    for (std::int64_t h = 0; h < p.q.shape[1]; h += group) {
      job.tiles.push_back({.first = t, .head = h, .heads = group});
    }
  }
  run_attention(job);
}

// The heads of one tile: a key head's, in pieces where few rows would leave threads idle. Changes no bit.
std::int64_t tile_heads(const SparseMhaParams& p, std::int64_t group) {
  constexpr std::int64_t kFew = 16;
  std::int64_t heads = std::min(group, kSetColumns);
  const auto tasks = [&](std::int64_t h) {
    const std::int64_t rows = kSetColumns / h * kSetTiles;
    return ceil_div(p.q.shape[0], rows) * (p.q.shape[1] / group) * ceil_div(group, h);
  };
  const std::int64_t wanted = team_size(2 * p.q.shape[0] * p.q.shape[1], p.threads);
  while (heads > kFew && tasks(heads) < 2 * wanted) heads = round_up(ceil_div(heads, 2), kFew);
  return heads;
}

// The rows of one group and the heads of one task.
void attend_group(const SetPlan& plan, const KeySets& sets, std::int64_t place, std::int64_t row, std::int64_t head,
                  std::int64_t heads, SetRoom& room, const std::uint8_t* repeats) {
  const KeySet set = sets[place];
  SetTile tiles[kSetTiles];
  std::int64_t count = 0;
  for (const std::int64_t end = std::min(plan.p.q.shape[0], row + sets.group_rows()); row < end; ++count) {
    tiles[count] = {row, std::min(sets.tile_rows(), end - row), head, heads};
    room.clear(count);
    room.pack(count, tiles[count]);
    row += tiles[count].rows;
  }
  for (std::int64_t b = 0; b < sets.blocks(); ++b) {
    const std::int64_t begin = set.starts[b];
    const std::int64_t n = set.starts[b + 1] - begin;
    if (n == 0) continue;
    room.stage(set.kept + begin, n, head / plan.group);
    for (std::int64_t t = 0; t < count; ++t) {
      const SetRange range = set.ranges[t * sets.blocks() + b];
      if (range.first < range.last) room.attend(t, tiles[t], range, set.seen + t * sets.padded() + begin);
    }
  }
  for (std::int64_t t = 0; t < count; ++t) room.write(t, tiles[t], repeats);
}

void attend_sets(const SparseMhaParams& p, std::int64_t group, std::uint8_t* repeats) {
  SetPlan plan = make_set_plan(p, group);
  const std::int64_t rows = p.q.shape[0];
  plan.heads = tile_heads(p, group);
  // A last piece of fewer heads has its columns at other places than the sets say, unless its rows stand alone.
  plan.tile_rows = group % plan.heads == 0 ? kSetColumns / plan.heads : 1;
  plan.tiles = std::min(kSetTiles, ceil_div(rows, plan.tile_rows));
  const std::int64_t groups = ceil_div(rows, plan.tile_rows * kSetTiles);
  const KeySets sets(p.indices, p.topk_length, p.k.shape[0], plan.narrow == nullptr ? 1 : plan.narrow->unit, plan.heads,
                     plan.tile_rows, groups);
  const std::int64_t pieces = ceil_div(group, plan.heads);
  const std::int64_t head_tasks = p.q.shape[1] / group * pieces;
  const int team = team_size(std::min(groups, sets.groups()) * head_tasks, p.threads);
  const std::int64_t size = SetRoom::floats(plan);
  const Scratch<float> memory(team * size);
  std::vector<SetRoom> rooms;
  for (int i = 0; i < team; ++i) rooms.emplace_back(plan, memory.data() + i * size);
  for (std::int64_t first = 0; first < groups; first += sets.groups()) {
    const std::int64_t n = std::min(sets.groups(), groups - first);
    parallel_for(n, p.threads, [&](std::int64_t i, int) {
      const std::int64_t row = (first + i) * sets.group_rows();
      sets.build(i, row, std::min(rows, row + sets.group_rows()), repeats);
    });
    // One head after the other: its keys and values stay in the caches.
    parallel_for(n * head_tasks, p.threads, [&](std::int64_t task, int slot) {
      const KernelScope scope(plan.narrow == nullptr ? TileSwitch{} : plan.narrow->tiles);
      const std::int64_t head = task / n / pieces * group + task / n % pieces * plan.heads;
      const std::int64_t heads = std::min(plan.heads, round_up(head + 1, group) - head);
      const std::int64_t place = task % n;
      attend_group(plan, sets, place, (first + place) * sets.group_rows(), head, heads,
                   rooms[static_cast<std::size_t>(slot)], repeats);
    });
  }
}

}  // namespace

void sparse_mha(const SparseMhaParams& params) {
  const OpScope scope;
  SparseMhaParams p = params;
  const std::int64_t group = require_key_heads(kOp, p.q, p.k, p.v);
  p.indices = squeeze_head_axis(kOp, "indices", p.indices);
  require_scale(kOp, p.sm_scale);
  require_int(kOp, "indices", p.indices);
  require_shape(kOp, "indices", p.indices, {p.q.shape[0], kAny}, "[T, K]");
  require_outputs(kOp, {&p.out, &p.lse, nullptr}, p.q.shape[0], p.q.shape[1], p.v.shape[2],
                  {&p.q, &p.k, &p.v, &params.indices, &p.topk_length});
  require_indices(kOp,
                  {.indices = p.indices,
                   .topk_length = p.topk_length,
                   .lane_of = {},
                   .size = p.k.shape[0],
                   .space = "packed rows of k and v"},
                  p.validate, p.threads);
  if (p.q.shape[0] == 0 || p.q.shape[1] == 0) return;
  const Scratch<std::uint8_t> repeats(p.q.shape[0]);
  attend_sets(p, group, repeats.data());
  attend_lists(p, group, repeats.data());
}

}  // namespace sparsespan
