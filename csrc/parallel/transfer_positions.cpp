#include "parallel/transfer_positions.h"

#include <algorithm>
#include <limits>
#include <numeric>

namespace sparsespan {

namespace {

constexpr std::string_view kOp = "transfer_slots";

void validate(const PositionSet& s) {
  for (const auto& [layout, q] : {std::pair{s.src, s.src_class}, std::pair{s.dst, s.dst_class}}) {
    if (layout.block < 1 || layout.ranks < 1) refuse_value(kOp, "layout", "needs block >= 1 and ranks >= 1");
    checked_product(kOp, "layout", layout.block, layout.ranks);
    if (q < 0 || q >= layout.ranks) refuse_index(kOp, "class", "is ", q, ", needs 0 .. ", layout.ranks - 1);
  }
  if (s.start < 0 || s.start > s.stop) {
    refuse_value(kOp, "start", "is ", s.start, ", needs 0 <= start <= stop = ", s.stop);
  }
}

void validate(const TransferSlotsParams& p) {
  validate(p.set);
  if (p.page_size < 1) refuse_value(kOp, "page_size", "is ", p.page_size, ", needs at least 1");
  require_int(kOp, "table", p.table);
  require_shape(kOp, "table", p.table, {kAny}, "[pages]");
  if (p.set.count() == 0) return;
  const BlockCyclic& layout = p.source ? p.set.src : p.set.dst;
  const std::int64_t pages = layout.local(p.set.last()) / p.page_size + 1;
  if (pages > p.table.shape[0]) {
    refuse_index(kOp, "table", "has ", p.table.shape[0], " pages, position ", p.set.last(), " lies in page ", pages - 1,
                 " of this rank; pass the whole request's page list");
  }
  const IntView<1> table(p.table);
  for (std::int64_t i = layout.local(p.set.first()) / p.page_size; i < pages; ++i) {
    if (table(i) < 0) refuse_index(kOp, "table", "holds ", table(i), " at [", i, "], needs a page id >= 0");
  }
}

}  // namespace

std::int64_t checked_lcm(std::string_view op, std::string_view what, std::int64_t a, std::int64_t b) {
  return checked_product(op, what, a / std::gcd(a, b), b);
}

// Runs of the layout with the larger span, counted in the other by formula.
std::int64_t PositionSet::below_in_period(std::int64_t x) const {
  const bool swap = dst.span() > src.span();
  const BlockCyclic& outer = swap ? dst : src;
  const BlockCyclic& inner = swap ? src : dst;
  const std::int64_t outer_class = swap ? dst_class : src_class;
  const std::int64_t inner_class = swap ? src_class : dst_class;
  std::int64_t total = 0;
  for (std::int64_t lo = outer_class * outer.block; lo < x; lo += outer.span()) {
    total += inner.below(std::min(lo + outer.block, x), inner_class) - inner.below(lo, inner_class);
  }
  return total;
}

std::int64_t PositionSet::below(std::int64_t x) const {
  if (src.ranks == 1) return dst.below(x, dst_class);
  if (dst.ranks == 1) return src.below(x, src_class);
  const std::int64_t a = src.span() / std::gcd(src.span(), dst.span());
  std::int64_t period = 0;
  if (__builtin_mul_overflow(a, dst.span(), &period) || period > x) return below_in_period(x);
  return x / period * below_in_period(period) + below_in_period(x % period);
}

std::int64_t PositionSet::count() const { return stop > start ? below(stop) - below(start) : 0; }

// The smallest position p with n + 1 members below p + 1.
std::int64_t PositionSet::nth(std::int64_t n) const {
  std::int64_t lo = start;
  std::int64_t hi = stop - 1;
  while (lo < hi) {
    const std::int64_t middle = lo + (hi - lo) / 2;
    if (below(middle + 1) > n) {
      hi = middle;
    } else {
      lo = middle + 1;
    }
  }
  return lo;
}

std::int64_t PositionSet::first() const { return nth(below(start)); }
std::int64_t PositionSet::last() const { return nth(below(stop) - 1); }

void PositionSet::each_run(const std::function<void(std::int64_t, std::int64_t)>& visit) const {
  const auto next_run = [](const BlockCyclic& layout, std::int64_t q, std::int64_t p, std::int64_t limit,
                           std::int64_t& begin, std::int64_t& end) {
    begin = p;
    if (layout.ranks == 1) {
      end = limit;
      return;
    }
    const std::int64_t away = (q - layout.owner(p) + layout.ranks) % layout.ranks;
    if (away > 0) begin = (p / layout.block + away) * layout.block;
    end = (begin / layout.block + 1) * layout.block;
  };
  for (std::int64_t p = start; p < stop;) {
    std::int64_t src_begin = 0, src_end = 0, dst_begin = 0, dst_end = 0;
    next_run(src, src_class, p, stop, src_begin, src_end);
    next_run(dst, dst_class, p, stop, dst_begin, dst_end);
    const std::int64_t begin = std::max(src_begin, dst_begin);
    const std::int64_t end = std::min({src_end, dst_end, stop});
    if (begin < end) visit(begin, end);
    p = std::max(p + 1, begin < end ? end : begin);
  }
}

std::vector<std::int64_t> positions_of(const PositionSet& set) {
  validate(set);
  std::vector<std::int64_t> positions;
  positions.reserve(static_cast<std::size_t>(set.count()));
  set.each_run([&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t p = begin; p < end; ++p) positions.push_back(p);
  });
  return positions;
}

std::vector<std::int64_t> transfer_slots(const TransferSlotsParams& p) {
  validate(p);
  const BlockCyclic& layout = p.source ? p.set.src : p.set.dst;
  const IntView<1> table(p.table);
  std::vector<std::int64_t> slots = positions_of(p.set);
  for (auto& slot : slots) {
    const std::int64_t local = layout.local(slot);
    slot = table(local / p.page_size) * p.page_size + local % p.page_size;
  }
  return slots;
}

}  // namespace sparsespan
