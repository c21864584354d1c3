#include "parallel/dcp_layout.h"

#include <limits>

#include "core/parallel.h"
#include "core/scratch.h"
#include "parallel/fingerprint.h"

namespace sparsespan {

namespace {

constexpr std::string_view kNames[] = {"dcp_layout.owner", "dcp_layout.local", "dcp_layout.logical",
                                       "dcp_layout.local_len", "dcp_layout.visible_len"};
constexpr std::string_view kArguments[] = {"positions", "positions", "local", "lengths", "positions"};
constexpr std::int64_t kPerTask = 1 << 15;

void require_positive(std::string_view argument, std::int64_t value) {
  if (value < 1) refuse_value("dcp_layout", argument, "is ", value, ", needs at least 1");
}

bool counts_rows(DcpMap map) { return map == DcpMap::local_len || map == DcpMap::visible_len; }

void validate(const DcpLayout& layout, const DcpMapParams& p) {
  const auto op = kNames[static_cast<int>(p.map)];
  const auto argument = kArguments[static_cast<int>(p.map)];
  require_int(op, argument, p.in);
  require_shape(op, argument, p.in, {kAny, kAny}, "[n, m]");
  const bool all = counts_rows(p.map) && p.rank == DcpMapParams::kAllRanks;
  const std::int64_t n = p.in.shape[0];
  const std::int64_t m = p.in.shape[1];
  if (all) {
    require_output(op, "out", p.out, p.in.dtype, {checked_product(op, "out", n, m), layout.world_size()}, "[n, N]",
                   {&p.in});
    return;
  }
  require_output(op, "out", p.out, p.in.dtype, {n, m}, "[n, m]", {&p.in});
  if (p.map != DcpMap::owner && p.map != DcpMap::local) layout.require_rank(op, p.rank);
}

// Runs f(i, value) over [n, m] in row order, cut into tasks of fixed size.
template <class F>
void for_each(const DcpMapParams& p, const F& f) {
  const IntView<2> in(p.in);
  const std::int64_t n = in.shape[0] * in.shape[1];
  parallel_for(ceil_div(n, kPerTask), p.threads, [&](std::int64_t task, int) {
    std::int64_t row = task * kPerTask / in.shape[1];
    std::int64_t column = task * kPerTask % in.shape[1];
    for (std::int64_t i = task * kPerTask; i < std::min(n, (task + 1) * kPerTask); ++i) {
      f(row, column, in(row, column));
      if (++column == in.shape[1]) {
        column = 0;
        ++row;
      }
    }
  });
}

// The lowest value that is legal and the highest whose result fits.
void check_range(const DcpLayout& layout, const DcpMapParams& p) {
  const auto op = kNames[static_cast<int>(p.map)];
  const auto argument = kArguments[static_cast<int>(p.map)];
  const std::int64_t lowest = p.map == DcpMap::local_len ? 0 : -1;
  const std::int64_t top =
      p.in.dtype == DType::int64 ? std::numeric_limits<std::int64_t>::max() : std::numeric_limits<std::int32_t>::max();
  const std::int64_t stride = layout.world_size() * layout.interleave();
  for_each(p, [&](std::int64_t row, std::int64_t column, std::int64_t value) {
    if (value < lowest) {
      refuse_index(op, argument, "row ", row, ", column ", column, " is ", value,
                   lowest == 0 ? ", needs at least 0; give padding rows of a static batch length 0"
                               : ", needs at least 0, or -1 for none");
    }
    // l / S * (N * S) + (N * S - 1) must not pass the end of the dtype.
    if (p.map == DcpMap::logical && value / layout.interleave() > (top - (stride - 1)) / stride) {
      refuse_index(op, argument, "row ", row, ", column ", column, " is ", value, ", its position does not fit ",
                   name_of(p.in.dtype));
    }
  });
}

std::int64_t apply(const DcpLayout& layout, DcpMap map, std::int64_t rank, std::int64_t value) {
  switch (map) {
    case DcpMap::owner: return value < 0 ? -1 : layout.owner(value);
    case DcpMap::local: return value < 0 ? -1 : layout.local(value);
    case DcpMap::logical: return value < 0 ? -1 : layout.logical(rank, value);
    case DcpMap::local_len: return layout.local_len(value, rank);
    // local_len(value + 1, rank) without the overflow at the end of the range; -1 sees nothing.
    case DcpMap::visible_len:
      return value < 0 ? 0 : layout.local_len(value, rank) + (layout.owner(value) == rank ? 1 : 0);
  }
  return -1;
}

template <class T>
void run(const DcpLayout& layout, const DcpMapParams& p) {
  const auto out = p.out.as<T, 2>();
  if (counts_rows(p.map) && p.rank == DcpMapParams::kAllRanks) {
    for_each(p, [&](std::int64_t row, std::int64_t column, std::int64_t value) {
      T* to = out.row(row * p.in.shape[1] + column);
      for (std::int64_t r = 0; r < layout.world_size(); ++r) to[r] = static_cast<T>(apply(layout, p.map, r, value));
    });
    return;
  }
  for_each(p, [&](std::int64_t row, std::int64_t column, std::int64_t value) {
    out(row, column) = static_cast<T>(apply(layout, p.map, p.rank, value));
  });
}

}  // namespace

DcpLayout::DcpLayout(std::int64_t interleave, std::int64_t world_size, std::int64_t page_size)
    : map_{.block = interleave, .ranks = world_size}, page_size_(page_size) {
  require_positive("interleave", map_.block);
  require_positive("world_size", map_.ranks);
  require_positive("page_size", page_size_);
  if (page_size_ % map_.block != 0) {
    const std::int64_t above = round_up(page_size_, map_.block);
    refuse_value("dcp_layout", "page_size", "is ", page_size_, ", needs a multiple of interleave = ", map_.block,
                 " (a page holds whole runs of one rank); nearest valid page_size: ",
                 page_size_ < map_.block
                     ? std::to_string(above)
                     : std::to_string(page_size_ / map_.block * map_.block) + " or " + std::to_string(above),
                 ", or interleave 1 or ", page_size_);
  }
  if (checked_product("dcp_layout", "page_size * world_size", page_size_, map_.ranks) >
      std::numeric_limits<std::int32_t>::max()) {
    refuse_value("dcp_layout", "page_size * world_size", "is ", page_size_ * map_.ranks, ", needs at most 2147483647");
  }
}

std::string DcpLayout::text() const {
  return detail::join("dcp_layout(interleave=", map_.block, ", world_size=", map_.ranks, ", page_size=", page_size_,
                      ")");
}

std::string DcpLayout::fingerprint() const { return fingerprint_of(text()); }

void DcpLayout::require_rank(std::string_view op, std::int64_t rank) const {
  if (rank < 0 || rank >= map_.ranks) {
    refuse_index(op, "rank", "is ", rank, ", needs 0 to ", map_.ranks - 1, " (world_size = ", map_.ranks, ")");
  }
}

void dcp_map(const DcpLayout& layout, const DcpMapParams& p) {
  validate(layout, p);
  check_range(layout, p);
  if (p.in.dtype == DType::int64) {
    run<std::int64_t>(layout, p);
  } else {
    run<std::int32_t>(layout, p);
  }
}

}  // namespace sparsespan
