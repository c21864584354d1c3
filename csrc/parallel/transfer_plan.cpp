#include "parallel/transfer_plan.h"

#include <algorithm>
#include <tuple>

#include "parallel/transfer_validate.h"

namespace sparsespan {

namespace {

constexpr std::string_view kOp = "transfer_plan";

struct LayerRange {
  std::int64_t begin, end;
};

// A run of layers with one set of holders: the cp ranks [cp_begin, cp_end) of one prefill stage and one decode stage.
struct LayerRun {
  LayerRange layers;
  std::int64_t src_stage, cp_begin, cp_end, dst_stage;
};

// base + 1 for the first `total % n` of n pieces: where piece i begins.
std::int64_t piece_begin(std::int64_t total, std::int64_t n, std::int64_t i) {
  return i * (total / n) + std::min(i, total % n);
}

std::vector<LayerRun> source_runs(const KvSide& side) {
  std::vector<LayerRun> runs;
  std::int64_t begin = 0;
  for (std::int64_t stage = 0; stage < side.pp; ++stage) {
    const std::int64_t count = side.stages[stage];
    const bool split = side.kv == KvPlacement::layer_split;
    for (std::int64_t r = 0; r < (split ? side.cp : 1); ++r) {
      const LayerRange layers{begin + (split ? piece_begin(count, side.cp, r) : 0),
                              begin + (split ? piece_begin(count, side.cp, r + 1) : count)};
      if (layers.begin < layers.end) runs.push_back({layers, stage, split ? r : 0, split ? r + 1 : side.cp, 0});
    }
    begin += count;
  }
  return runs;
}

// The index cache exists only in some layers: cut [begin, end) to their runs.
std::vector<LayerRange> owned_layers(const TransferParams& p, Part part, LayerRange range) {
  if (part == Part::kv) return {range};
  std::vector<LayerRange> runs;
  for (auto it = std::lower_bound(p.index_layers.begin(), p.index_layers.end(), range.begin);
       it != p.index_layers.end() && *it < range.end; ++it) {
    if (!runs.empty() && runs.back().end == *it) {
      ++runs.back().end;
    } else {
      runs.push_back({*it, *it + 1});
    }
  }
  return runs;
}

std::vector<LayerRun> layer_runs(const TransferParams& p, Part part) {
  std::vector<LayerRun> runs;
  for (const LayerRun& source : source_runs(p.prefill)) {
    std::int64_t begin = 0;
    for (std::int64_t stage = 0; stage < p.decode.pp; ++stage) {
      const LayerRange both{std::max(begin, source.layers.begin),
                            std::min(begin + p.decode.stages[stage], source.layers.end)};
      begin += p.decode.stages[stage];
      if (both.begin >= both.end) continue;
      for (const LayerRange& layers : owned_layers(p, part, both)) {
        runs.push_back({layers, source.src_stage, source.cp_begin, source.cp_end, stage});
      }
    }
  }
  return runs;
}

// The cut line of one request: units of whole pages of both sides, [0, count), clipped to [start, stop).
struct Units {
  std::int64_t size, first, count, start, stop;
  std::int64_t position(std::int64_t unit) const {
    if (unit >= count) return stop;
    return unit <= 0 ? start : (first + unit) * size;
  }
};

class Planner {
 public:
  Planner(const TransferParams& p, Part part)
      : p_(p),
        part_(part),
        src_(prefill_layout(p.prefill, part)),
        dst_(decode_layout(p.decode, part)),
        runs_(layer_runs(p, part)),
        bytes_(part == Part::kv ? p.kv_bytes : p.index_bytes) {
    unit_ = checked_lcm(kOp, "page_size", checked_product(kOp, "prefill.page_size", p.prefill.page_size, src_.ranks),
                        checked_product(kOp, "decode.page_size", p.decode.page_size, dst_.ranks));
  }

  void request(std::int64_t s, std::vector<Transfer>& out) const {
    const std::int64_t start = p_.present[s];
    const std::int64_t stop = p_.lengths[s];
    if (start == stop) return;
    const std::int64_t first = start / unit_;
    const Units units{unit_, first, (stop - 1) / unit_ + 1 - first, start, stop};
    for (const LayerRun& run : runs_) {
      for (std::int64_t q = 0; q < src_.ranks; ++q) group(s, run, q, units, out);
    }
  }

 private:
  // The prefill ranks that hold class q of this run, cp-major; with sharding only those of the class.
  std::int64_t cp_count(const LayerRun& run) const { return src_.ranks > 1 ? 1 : run.cp_end - run.cp_begin; }
  std::int64_t tp_count() const { return src_.ranks > 1 ? p_.prefill.tp / p_.prefill.dcp : p_.prefill.tp; }
  std::int64_t holder(const LayerRun& run, std::int64_t q, std::int64_t c, std::int64_t t) const {
    const bool sharded = src_.ranks > 1;
    const std::int64_t cp_rank = sharded ? q / p_.prefill.dcp : run.cp_begin + c;
    const std::int64_t tp_rank = sharded ? t * p_.prefill.dcp + q % p_.prefill.dcp : t;
    return (run.src_stage * p_.prefill.cp + cp_rank) * p_.prefill.tp + tp_rank;
  }
  std::int64_t dst_class(std::int64_t tp_rank) const { return dst_.ranks > 1 ? tp_rank % p_.decode.dcp : 0; }

  PositionSet set_of(std::int64_t q, std::int64_t d, std::int64_t start, std::int64_t stop) const {
    return {.src = src_, .dst = dst_, .src_class = q, .dst_class = d, .start = start, .stop = stop};
  }

  void group(std::int64_t s, const LayerRun& run, std::int64_t q, const Units& units,
             std::vector<Transfer>& out) const {
    std::vector<std::int64_t> wanting;  // tp ranks of the decode stage that need something of class q
    for (std::int64_t j = 0; j < p_.decode.tp; ++j) {
      if (set_of(q, dst_class(j), units.start, units.stop).count() > 0) wanting.push_back(j);
    }
    if (p_.spread == Spread::balanced) {
      balanced(s, run, q, units, wanting, out);
    } else {
      by_cp_rank(s, run, q, units, wanting, out);
    }
  }

  // All (destination, unit) pairs in one line, cut into equal pieces: one piece for each holder.
  void balanced(std::int64_t s, const LayerRun& run, std::int64_t q, const Units& units,
                const std::vector<std::int64_t>& wanting, std::vector<Transfer>& out) const {
    const std::int64_t holders = cp_count(run) * tp_count();
    const std::int64_t line = checked_product(kOp, "lengths", units.count, static_cast<std::int64_t>(wanting.size()));
    for (std::int64_t piece = 0; piece < std::min(holders, line); ++piece) {
      const std::int64_t r = (piece + s) % holders;
      const std::int64_t src = holder(run, q, r / tp_count(), r % tp_count());
      const std::int64_t end = piece_begin(line, holders, piece + 1);
      for (std::int64_t at = piece_begin(line, holders, piece); at < end;) {
        const std::int64_t which = at / units.count;
        const std::int64_t next = std::min(end, (which + 1) * units.count);
        emit(s, run, q, src, wanting[which], units.position(at - which * units.count),
             units.position(next - which * units.count), out);
        at = next;
      }
    }
  }

  // One tp replica per destination, chosen by place; its cp ranks send slices, or one of them sends all.
  void by_cp_rank(std::int64_t s, const LayerRun& run, std::int64_t q, const Units& units,
                  const std::vector<std::int64_t>& wanting, std::vector<Transfer>& out) const {
    const std::int64_t cps = cp_count(run);
    for (const std::int64_t j : wanting) {
      const std::int64_t t = j * tp_count() / p_.decode.tp;
      if (p_.spread != Spread::pages) {
        const std::int64_t c = p_.spread == Spread::request ? s % cps : 0;
        emit(s, run, q, holder(run, q, c, t), j, units.start, units.stop, out);
        continue;
      }
      for (std::int64_t c = 0; c < std::min(cps, units.count); ++c) {
        emit(s, run, q, holder(run, q, c, t), j, units.position(piece_begin(units.count, cps, c)),
             units.position(piece_begin(units.count, cps, c + 1)), out);
      }
    }
  }

  void emit(std::int64_t s, const LayerRun& run, std::int64_t q, std::int64_t src, std::int64_t j, std::int64_t start,
            std::int64_t stop, std::vector<Transfer>& out) const {
    const PositionSet set = set_of(q, dst_class(j), start, stop);
    const std::int64_t tokens = set.count();
    if (tokens == 0) return;
    const std::int64_t first = set.first();
    const std::int64_t last = set.last();
    out.push_back({s, static_cast<std::int64_t>(part_), run.layers.begin, run.layers.end, src,
                   run.dst_stage * p_.decode.tp + j, q, set.dst_class, start, stop,
                   src_.local(first) / p_.prefill.page_size, src_.local(last) / p_.prefill.page_size + 1,
                   dst_.local(first) / p_.decode.page_size, dst_.local(last) / p_.decode.page_size + 1, tokens,
                   tokens * bytes_ * (run.layers.end - run.layers.begin)});
  }

  const TransferParams& p_;
  Part part_;
  BlockCyclic src_, dst_;
  std::vector<LayerRun> runs_;
  std::int64_t bytes_;
  std::int64_t unit_ = 1;
};

}  // namespace

BlockCyclic prefill_layout(const KvSide& side, Part part) {
  const bool sharded = side.kv == KvPlacement::interleave && (part == Part::kv || side.index_sharded);
  return sharded && side.cp * side.dcp > 1 ? BlockCyclic{side.interleave, side.cp * side.dcp} : BlockCyclic{};
}

BlockCyclic decode_layout(const KvSide& side, Part part) {
  const bool sharded = side.dcp > 1 && (part == Part::kv || side.index_sharded);
  return sharded ? BlockCyclic{side.interleave, side.dcp} : BlockCyclic{};
}

std::vector<Transfer> transfer_plan(const TransferParams& p) {
  validate_transfer(p);
  std::vector<Transfer> plan;
  std::vector<Planner> planners;
  if (p.kv_bytes > 0) planners.emplace_back(p, Part::kv);
  if (p.index_bytes > 0) planners.emplace_back(p, Part::index);
  for (std::size_t s = 0; s < p.lengths.size(); ++s) {
    const auto begin = plan.size();
    for (const Planner& planner : planners) planner.request(static_cast<std::int64_t>(s), plan);
    const auto key = [](const Transfer& t) { return std::tie(t.dst, t.part, t.layer_begin, t.start, t.src); };
    std::sort(plan.begin() + static_cast<std::ptrdiff_t>(begin), plan.end(),
              [&](const Transfer& a, const Transfer& b) { return key(a) < key(b); });
  }
  return plan;
}

}  // namespace sparsespan
