#include "parallel/dcp_remap.h"

#include <bit>
#include <limits>

#include "core/parallel.h"
#include "core/scratch.h"

namespace sparsespan {

namespace {

constexpr std::string_view kOp = "dcp_layout.remap_topk";
constexpr std::string_view kPacked = "dcp_layout.packed_rows";
constexpr std::int64_t kEntriesPerTask = 1 << 15;
constexpr std::int64_t kLanes = 8;

// Splits p into run number and place in the run, run number into round and owner. U is the unsigned index type.
template <class U>
struct Divide {
  U s, n;
  U run(U p) const { return p / s; }
  U round(U run) const { return run / n; }
};

// S and N powers of two: the usual case, three times as quick.
template <class U>
struct Shift {
  U s, n;
  int log2_s, log2_n;
  U run(U p) const { return p >> log2_s; }
  U round(U run) const { return run >> log2_n; }
};

// One pass, two cursors. Every entry is written at `count` and only a kept one moves it on; count <= j < width, so
// the store stays inside the row and the last junk is covered by the padding. -1 becomes the largest unsigned value:
// its owner may be this rank (-1 % N is N - 1), which is why `p >= 0` stands in the condition.
template <class T, class Map>
std::int64_t remap_row(const T* in, T* out, T* lanes, std::int64_t length, std::int64_t width, const Map& map,
                       std::int64_t rank) {
  using U = std::make_unsigned_t<T>;
  const U mine = static_cast<U>(rank);
  std::int64_t count = 0;
  for (std::int64_t j = 0; j < length; ++j) {
    const T p = in[j];
    const U u = static_cast<U>(p);
    const U run = map.run(u);
    const U round = map.round(run);
    out[count] = static_cast<T>(round * map.s + (u - run * map.s));
    if (lanes != nullptr) lanes[count] = static_cast<T>(run % kLanes);
    count += static_cast<std::int64_t>((p >= 0) & (run - round * map.n == mine));
  }
  std::fill(out + count, out + width, T{-1});
  if (lanes != nullptr) std::fill(lanes + count, lanes + width, T{-1});
  return count;
}

std::int64_t row_length(const Tensor& topk_length, std::int64_t row, std::int64_t width) {
  return topk_length ? IntView<1>(topk_length)(row) : width;
}

std::int64_t rows_per_task(std::int64_t width) { return std::max<std::int64_t>(1, kEntriesPerTask / (width + 1)); }

template <class F>
void for_rows(std::int64_t rows, std::int64_t width, int threads, const F& f) {
  const std::int64_t step = rows_per_task(width);
  parallel_for(ceil_div(rows, step), threads, [&](std::int64_t task, int) {
    for (std::int64_t t = task * step; t < std::min(rows, (task + 1) * step); ++t) f(t);
  });
}

void validate_lengths(const RemapTopkParams& p) {
  const std::int64_t rows = p.indices.shape[0];
  const std::int64_t width = p.indices.shape[1];
  if (p.topk_length) {
    require_int(kOp, "topk_length", p.topk_length);
    require_shape(kOp, "topk_length", p.topk_length, {rows}, "[T]");
    for (std::int64_t t = 0; t < rows; ++t) {
      const std::int64_t n = row_length(p.topk_length, t, width);
      if (n < 0 || n > width) refuse_value(kOp, "topk_length", "row ", t, " is ", n, ", needs 0 to K = ", width);
    }
  }
  if (!p.context_lens) return;
  require_int(kOp, "context_lens", p.context_lens);
  require_shape(kOp, "context_lens", p.context_lens, {rows}, "[T]");
  for (std::int64_t t = 0; t < rows; ++t) {
    const std::int64_t n = IntView<1>(p.context_lens)(t);
    if (n < 0) refuse_value(kOp, "context_lens", "row ", t, " is ", n, ", needs at least 0; give padding rows 0");
  }
}

// IndexError for the first entry below -1 or at `limit` or above.
template <class T>
void check_row(std::string_view op, const T* in, std::int64_t row, std::int64_t length, std::int64_t limit) {
  const T top = static_cast<T>(std::min<std::int64_t>(limit, std::numeric_limits<T>::max()));
  const bool bounded = limit <= std::numeric_limits<T>::max();
  bool bad = false;
  for (std::int64_t j = 0; j < length; ++j) bad |= (in[j] < -1) | (bounded & (in[j] >= top));
  if (!bad) return;
  for (std::int64_t j = 0; j < length; ++j) {
    if (in[j] >= -1 && !(bounded && in[j] >= top)) continue;
    if (bounded) {
      refuse_index(op, "indices", "row ", row, ", column ", j, " is ", in[j], ", needs -1 or 0 to ", limit - 1,
                   " (the row has ", limit, " keys)");
    }
    refuse_index(op, "indices", "row ", row, ", column ", j, " is ", in[j], ", needs -1 or a position of at least 0");
  }
}

void validate(const DcpLayout& layout, const RemapTopkParams& p) {
  require_int(kOp, "indices", p.indices);
  require_shape(kOp, "indices", p.indices, {kAny, kAny}, "[T, K]");
  require_inner_contiguous(kOp, "indices", p.indices);
  const std::int64_t rows = p.indices.shape[0];
  const std::int64_t width = p.indices.shape[1];
  layout.require_rank(kOp, p.rank);
  validate_lengths(p);
  require_output(kOp, "out", p.out, p.indices.dtype, {rows, width}, "[T, K]",
                 {&p.indices, &p.topk_length, &p.context_lens});
  if (p.lanes) {
    if (kLanes % layout.world_size() != 0) {
      refuse_value(kOp, "return_lanes", "needs world_size 1, 2, 4 or 8 (each of the 8 lanes lies on one rank), has ",
                   layout.world_size());
    }
    require_output(kOp, "lanes", p.lanes, p.indices.dtype, {rows, width}, "[T, K]",
                   {&p.indices, &p.topk_length, &p.context_lens, &p.out});
  }
  if (p.counts)
    require_output(kOp, "counts", p.counts, DType::int32, {rows}, "[T]",
                   {&p.indices, &p.topk_length, &p.context_lens, &p.out, &p.lanes});
}

template <class T, class Map>
void run(const RemapTopkParams& p, const Map& map) {
  const auto in = p.indices.as<const T, 2>();
  const auto out = p.out.as<T, 2>();
  const auto lanes = p.lanes.as<T, 2>();
  for_rows(in.shape[0], in.shape[1], p.threads, [&](std::int64_t t) {
    const std::int64_t length = row_length(p.topk_length, t, in.shape[1]);
    const std::int64_t kept =
        remap_row(in.row(t), out.row(t), p.lanes ? lanes.row(t) : nullptr, length, in.shape[1], map, p.rank);
    if (p.counts) p.counts.as<std::int32_t, 1>()(t) = static_cast<std::int32_t>(kept);
  });
}

template <class T>
void remap(const DcpLayout& layout, const RemapTopkParams& p) {
  using U = std::make_unsigned_t<T>;
  const auto in = p.indices.as<const T, 2>();
  if (p.validate == Validate::full) {
    const IntView<1> lens = p.context_lens ? IntView<1>(p.context_lens) : IntView<1>();
    for_rows(in.shape[0], in.shape[1], p.threads, [&](std::int64_t t) {
      check_row(kOp, in.row(t), t, row_length(p.topk_length, t, in.shape[1]),
                p.context_lens ? lens(t) : std::numeric_limits<std::int64_t>::max());
    });
  }
  const auto s = static_cast<std::uint64_t>(layout.interleave());
  const auto n = static_cast<std::uint64_t>(layout.world_size());
  if (std::has_single_bit(s) && std::has_single_bit(n)) {
    run<T>(p, Shift<U>{static_cast<U>(s), static_cast<U>(n), std::countr_zero(s), std::countr_zero(n)});
  } else {
    run<T>(p, Divide<U>{static_cast<U>(s), static_cast<U>(n)});
  }
}

template <class T>
void pack(const DcpLayout& layout, const PackedRowsParams& p) {
  const auto in = p.indices.as<const T, 2>();
  const auto out = p.out.as<T, 2>();
  const std::int64_t width = in.shape[1];
  const std::int64_t round = layout.world_size() * layout.interleave();
  const std::int64_t send = ceil_div(p.prefix_len, round) * layout.interleave();
  for_rows(in.shape[0], width, p.threads,
           [&](std::int64_t t) { check_row(kPacked, in.row(t), t, width, p.total_len); });
  for_rows(in.shape[0], width, p.threads, [&](std::int64_t t) {
    for (std::int64_t j = 0; j < width; ++j) {
      const std::int64_t v = in(t, j);
      const std::int64_t row =
          v < p.prefix_len ? layout.owner(v) * send + layout.local(v) : layout.world_size() * send + (v - p.prefix_len);
      out(t, j) = static_cast<T>(v < 0 ? -1 : row);
    }
  });
}

}  // namespace

void remap_topk(const DcpLayout& layout, const RemapTopkParams& p) {
  validate(layout, p);
  if (p.indices.dtype == DType::int64) {
    remap<std::int64_t>(layout, p);
  } else {
    remap<std::int32_t>(layout, p);
  }
}

void dcp_packed_rows(const DcpLayout& layout, const PackedRowsParams& p) {
  require_int(kPacked, "indices", p.indices);
  require_shape(kPacked, "indices", p.indices, {kAny, kAny}, "[T, K]");
  require_inner_contiguous(kPacked, "indices", p.indices);
  if (p.prefix_len < 0) refuse_value(kPacked, "prefix_len", "is ", p.prefix_len, ", needs at least 0");
  if (p.total_len < p.prefix_len) {
    refuse_value(kPacked, "total_len", "is ", p.total_len, ", needs at least prefix_len = ", p.prefix_len);
  }
  if (p.index_topk < 1) refuse_value(kPacked, "index_topk", "is ", p.index_topk, ", needs at least 1");
  if (p.prefix_len + 1 < p.index_topk) {
    refuse_value(kPacked, "prefix_len", "is ", p.prefix_len, ", needs at least index_topk - 1 = ", p.index_topk - 1,
                 ": below it rows have fewer keys than topk and a kernel crops them causally, which packed rows do ",
                 "not survive; use gather_plan(...).source_rows, which restores the order");
  }
  const std::int64_t round = layout.virtual_page_size() / layout.page_size() * layout.interleave();
  if (p.total_len > std::numeric_limits<std::int32_t>::max() - round) {
    refuse_value(kPacked, "total_len", "is ", p.total_len, ", needs less than 2^31 - ", round);
  }
  require_output(kPacked, "out", p.out, p.indices.dtype, {p.indices.shape[0], p.indices.shape[1]}, "[T, K]",
                 {&p.indices});
  if (p.indices.dtype == DType::int64) {
    pack<std::int64_t>(layout, p);
  } else {
    pack<std::int32_t>(layout, p);
  }
}

}  // namespace sparsespan
