#include "parallel/topk_exchange.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "core/parallel.h"
#include "indexer/topk.h"

namespace sparsespan {

namespace {

constexpr std::string_view kOp = "global_topk";
constexpr std::uint64_t kNanKey = 0xFFFFFFFF;  // above the key of +inf
constexpr std::int32_t kNanId = -2;            // -2 - position: a row whose merging rank met a NaN

std::uint64_t entry(std::uint64_t key, std::int64_t position) {
  return key << 32 | (0xFFFFFFFFU - static_cast<std::uint32_t>(position));
}
std::int32_t position_of(std::uint64_t e) { return static_cast<std::int32_t>(0xFFFFFFFFU - (e & 0xFFFFFFFFU)); }

// One row's lists of N * k entries, and room to choose among them.
class RowMerge {
 public:
  static std::int64_t words(std::int64_t ranks, std::int64_t k) { return round_up(3 * ranks * k, 16); }
  RowMerge(std::uint32_t* memory, std::int64_t ranks, std::int64_t k)
      : keys_(memory),
        ids_(reinterpret_cast<std::int32_t*>(memory + ranks * k)),
        ties_(ids_ + ranks * k),
        ends_(static_cast<std::size_t>(ranks)),
        k_(k) {}

  // The first NaN of the row, or -1, and else its best k to `out`, ascending. `lists` begin `stride` entries apart.
  std::int64_t run(const std::uint64_t* lists, std::int64_t stride, std::int32_t* out) {
    std::uint64_t nan = 0;
    std::int64_t n = 0;
    for (std::size_t r = 0; r < ends_.size(); ++r) {
      const std::uint64_t* list = lists + static_cast<std::int64_t>(r) * stride;
      nan = std::max(nan, *list);  // an entry for NaN is a list's first
      for (std::int64_t j = 0; j < k_ && list[j] != 0; ++j) keys_[n++] = static_cast<std::uint32_t>(list[j] >> 32);
    }
    if (nan >> 32 == kNanKey) return position_of(nan);
    const indexer::Cut cut = n > k_ ? indexer::find_cut(topk_kernels(), keys_, n, k_) : indexer::Cut{0, 0};
    const std::int64_t kept = take(lists, stride, cut);
    std::copy_n(ids_, kept, out);
    std::fill(out + kept, out + k_, -1);
    return -1;
  }

 private:
  // Ids of the entries above the cut and of the lowest ties, ascending in ids_. A rank's list is ascending by id.
  std::int64_t take(const std::uint64_t* lists, std::int64_t stride, const indexer::Cut& cut) {
    std::int32_t* end = ids_;
    std::int32_t* ties = ties_;
    for (std::size_t r = 0; r < ends_.size(); ++r) {
      const std::uint64_t* list = lists + static_cast<std::int64_t>(r) * stride;
      for (std::int64_t j = 0; j < k_ && list[j] != 0; ++j) {
        const std::uint64_t key = list[j] >> 32;
        *end = *ties = position_of(list[j]);
        end += key > cut.key ? 1 : 0;
        ties += key == cut.key ? 1 : 0;
      }
      ends_[r] = end;
    }
    // Lists by twos, then fours...
    for (std::size_t width = 1; width < ends_.size(); width *= 2) {
      for (std::size_t r = 0; r + width < ends_.size(); r += 2 * width) {
        std::inplace_merge(r == 0 ? ids_ : ends_[r - 1], ends_[r + width - 1],
                           ends_[std::min(r + 2 * width, ends_.size()) - 1]);
      }
    }
    std::sort(ties_, ties);
    std::copy_n(ties_, cut.ties, end);
    std::inplace_merge(ids_, end, end + cut.ties);
    return end + cut.ties - ids_;
  }

  std::uint32_t* keys_;
  std::int32_t* ids_;
  std::int32_t* ties_;
  std::vector<std::int32_t*> ends_;  // of each rank's ids
  std::int64_t k_;
};

struct Merge {
  const std::uint64_t* all;  // [N, stride rows, k]
  std::int64_t stride;       // rows between two ranks' lists
  std::int64_t ranks;
  std::int64_t rows;
  std::int64_t k;
};

// out [rows, k], row by row; a row with a NaN begins with kNanId - position.
void merge_rows(const Merge& m, std::int32_t* out, std::int64_t out_stride, int threads) {
  const std::int64_t room = RowMerge::words(m.ranks, m.k);
  const Scratch<std::uint32_t> scratch(team_size(m.rows, threads) * room);
  parallel_for(m.rows, threads, [&](std::int64_t t, int slot) {
    std::int32_t* to = out + t * out_stride;
    const std::int64_t nan =
        RowMerge(scratch.data() + slot * room, m.ranks, m.k).run(m.all + t * m.k, m.stride * m.k, to);
    if (nan >= 0) to[0] = static_cast<std::int32_t>(kNanId - nan);
  });
}

void refuse_nan(std::string_view op, const TensorView<std::int32_t, 2>& out) {
  for (std::int64_t row = 0; row < out.shape[0]; ++row) {
    if (out(row, 0) > kNanId) continue;
    const std::int64_t position = kNanId - out(row, 0);
    for (std::int64_t t = 0; t < out.shape[0]; ++t) std::fill_n(out.row(t), out.shape[1], -1);
    refuse_value(op, "scores", "has a NaN at row ", row, ", logical position ", position,
                 ", inside the window; needs numbers (nan=\"lowest\" ranks NaN last)");
  }
}

void check(const Communicator& comm, const DcpLayout& layout, const GlobalTopkParams& p) {
  if (comm.size() != layout.world_size()) {
    refuse_value(kOp, "comm", "has ", comm.size(), " ranks, needs ", layout.world_size(), " as ", layout.text(),
                 " has");
  }
  require_dtype(kOp, "scores", p.scores, {DType::float32});
  require_shape(kOp, "scores", p.scores, {kAny, kAny}, "[T, S]");
  if (p.k < 1) refuse_value(kOp, "k", "is ", p.k, ", needs at least 1");
  if (p.scores.shape[1] > 0 &&
      layout.logical(comm.rank(), p.scores.shape[1] - 1) > std::numeric_limits<std::int32_t>::max() + kNanId) {
    refuse_value(kOp, "scores", "has ", p.scores.shape[1], " columns, their logical positions do not fit int32");
  }
  require_output(kOp, "out", p.out, DType::int32, {p.scores.shape[0], p.k}, "[T, k]", {&p.scores, &p.context_lens});
}

// The rank's columns of each row's context. Refused on every rank alike where the lengths are; a rank that brings too
// few columns is refused by itself.
Scratch<std::int64_t> local_lengths(const Communicator& comm, const DcpLayout& layout, const GlobalTopkParams& p) {
  Scratch<std::int64_t> lengths(p.scores.shape[0]);
  std::fill_n(lengths.data(), lengths.size(), p.scores.shape[1]);
  if (!p.context_lens) return lengths;
  require_int(kOp, "context_lens", p.context_lens);
  require_shape(kOp, "context_lens", p.context_lens, {p.scores.shape[0]}, "[T]");
  const IntView<1> lens(p.context_lens);
  for (std::int64_t t = 0; t < lengths.size(); ++t) {
    if (lens(t) < 0) refuse_value(kOp, "context_lens", "is ", lens(t), " at row ", t, ", needs at least 0");
    lengths.data()[t] = layout.local_len(lens(t), comm.rank());
    if (lengths.data()[t] > p.scores.shape[1]) {
      refuse_value(kOp, "scores", "has ", p.scores.shape[1], " columns, needs ", lengths.data()[t], ", rank ",
                   comm.rank(), "'s share of the context of ", lens(t), " at row ", t);
    }
  }
  return lengths;
}

// The lengths as ranks compare them: with different ones each would merge another selection.
std::string contexts(const GlobalTopkParams& p) {
  std::string text;
  if (!p.context_lens) return text;
  const IntView<1> lens(p.context_lens);
  for (std::int64_t t = 0; t < p.scores.shape[0]; ++t) text += " " + std::to_string(lens(t));
  return text;
}

}  // namespace

TopkRoute parse_topk_route(std::string_view op, std::string_view text) {
  if (text == "sharded") return TopkRoute::all;
  if (text == "sharded_routed") return TopkRoute::owner;
  refuse_value(op, "exchange", "is \"", text, "\", needs \"sharded\" or \"sharded_routed\"");
}

TopkPicks::TopkPicks(std::string_view op, TopkRoute route, int ranks, std::int64_t rows, std::int64_t k)
    : op_(op),
      route_(route),
      ranks_(ranks),
      rows_(rows),
      k_(k),
      picks_(op, DType::int64, {route == TopkRoute::owner ? round_up(rows, ranks) : rows, k}) {}

void TopkPicks::fill(const DcpLayout& layout, std::int64_t rank, const TensorView<std::int32_t, 2>& columns,
                     const std::uint32_t* keys, const std::int64_t* nan_columns, int threads) {
  auto* picks = picks_.data<std::uint64_t>();
  parallel_rows(rows_, k_, threads, [&](std::int64_t t, int) {
    std::uint64_t* to = picks + t * k_;
    for (std::int64_t j = 0; j < k_; ++j) {
      const std::int32_t column = columns(t, j);
      to[j] = column < 0 ? 0 : entry(keys[t * k_ + j], layout.logical(rank, column));
    }
    if (nan_columns != nullptr && nan_columns[t] >= 0) to[0] = entry(kNanKey, layout.logical(rank, nan_columns[t]));
  });
  std::fill_n(picks + rows_ * k_, (picks_.tensor().shape[0] - rows_) * k_, 0);
}

void TopkPicks::exchange(Communicator& comm, const TensorView<std::int32_t, 2>& out, const CommOptions& options,
                         int threads) const {
  const std::int64_t rows = picks_.tensor().shape[0];
  if (route_ == TopkRoute::all) {
    const CommArray all(op_, DType::int64, {ranks_ * rows, k_});
    comm.iall_gather(picks_.tensor(), all.tensor(), touching(options, picks_, all))->wait();
    merge_rows({all.data<std::uint64_t>(), rows, ranks_, rows, k_}, out.data, out.strides[0], threads);
  } else {
    const std::int64_t per = rows / ranks_;
    const CommArray lists(op_, DType::int64, {rows, k_});
    const CommArray mine(op_, DType::int32, {per, k_});
    const CommArray ids(op_, DType::int32, {rows, k_});
    comm.iall_to_all(picks_.tensor(), lists.tensor(), touching(options, picks_, lists))->wait();
    merge_rows({lists.data<std::uint64_t>(), per, ranks_, per, k_}, mine.data<std::int32_t>(), k_, threads);
    comm.iall_gather(mine.tensor(), ids.tensor(), touching(options, mine, ids))->wait();
    for (std::int64_t t = 0; t < rows_; ++t) std::copy_n(ids.data<std::int32_t>() + t * k_, k_, out.row(t));
  }
  refuse_nan(op_, out);
}

void global_topk(Communicator& comm, const DcpLayout& layout, const GlobalTopkParams& p) {
  check(comm, layout, p);
  const Scratch<std::int64_t> lengths = local_lengths(comm, layout, p);
  const std::int64_t rows = p.scores.shape[0];
  TopkPicks picks(kOp, p.route, comm.size(), rows, p.k);
  const Scratch<std::uint32_t> keys(rows * p.k);
  std::vector<std::int64_t> nans(static_cast<std::size_t>(rows), -1);
  const bool raise = p.nan == indexer::NanRule::raise;
  TopkParams local;
  local.scores = p.scores;
  local.k = p.k;
  local.lengths = Tensor{
      .data = lengths.data(), .dtype = DType::int64, .rank = 1, .shape = {rows}, .strides = {1}, .present = true};
  local.out = p.out;
  local.nan = p.nan;
  local.ranked = {keys.data(), raise ? nans.data() : nullptr};
  local.validate = p.validate;
  local.threads = p.threads;
  topk(local);
  const auto out = p.out.as<std::int32_t, 2>();
  picks.fill(layout, comm.rank(), out, keys.data(), local.ranked.nan_columns, p.threads);
  CommOptions options = p.comm;
  options.plan = plan_hash(detail::join(layout.text(), " global_topk(k=", p.k, ", nan=", raise, ")", contexts(p)));
  picks.exchange(comm, out, options, p.threads);
}

}  // namespace sparsespan
