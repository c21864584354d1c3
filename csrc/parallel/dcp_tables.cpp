#include "parallel/dcp_tables.h"

#include <algorithm>
#include <numeric>

#include "core/scratch.h"

namespace sparsespan {

namespace {

constexpr std::string_view kSlots = "dcp_layout.slot_mapping";
constexpr std::string_view kWrites = "dcp_layout.write_plan";
constexpr std::string_view kPages = "dcp_layout.page_table";
constexpr std::string_view kReplicatedPages = "dcp_layout.replicated_page_table";
constexpr std::string_view kChunk = "dcp_layout.chunk_rows";

IntView<1> int_vector(std::string_view op, std::string_view argument, const Tensor& t, std::int64_t extent,
                      std::string_view names) {
  require_int(op, argument, t);
  require_shape(op, argument, t, {extent}, names);
  return IntView<1>(t);
}

// The page of a position: refused with its place when the table ends before it or holds no page there.
std::int64_t page_of(const DcpLayout& layout, const IntView<2>& table, std::int64_t t, std::int64_t p,
                     std::int64_t request) {
  const std::int64_t column = p / layout.virtual_page_size();
  if (column >= table.shape[1]) {
    refuse_index(kSlots, "positions", "row ", t, " is ", p, ", block_table has ", table.shape[1], " columns of ",
                 layout.virtual_page_size(), " positions (page_size * world_size): needs below ",
                 table.shape[1] * layout.virtual_page_size());
  }
  const std::int64_t page = table(request, column);
  if (page < 0) {
    refuse_index(kSlots, "block_table", "row ", request, ", column ", column, " is ", page, ", position ", p,
                 " needs a page there");
  }
  return page;
}

IntView<1> checked_locations(const DcpLayout& layout, const Tensor& locations, std::int64_t rank) {
  const auto view = int_vector(kWrites, "locations", locations, kAny, "[T]");
  layout.require_rank(kWrites, rank);
  const std::int64_t n = view.shape[0];
  std::vector<std::int64_t> order(static_cast<std::size_t>(n));
  for (std::int64_t t = 0; t < n; ++t) {
    if (view(t) < -1) refuse_index(kWrites, "locations", "row ", t, " is ", view(t), ", needs -1 or at least 0");
  }
  std::iota(order.begin(), order.end(), std::int64_t{0});
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return view(a) < view(b); });
  for (std::int64_t i = 1; i < n; ++i) {
    if (view(order[i]) >= 0 && view(order[i]) == view(order[i - 1])) {
      refuse_value(kWrites, "locations", "has ", view(order[i]), " in rows ", order[i - 1], " and ", order[i],
                   ", needs each location once: a token is written once");
    }
  }
  return view;
}

// Column j of row t is the first of a span: it and its run must be aligned and consecutive, else local pages do
// not exist (an allocator whose page is B instead of B * N makes such tables).
void check_run(const DcpLayout& layout, const IntView<2>& loc, std::int64_t t, std::int64_t first) {
  const std::int64_t span = layout.virtual_page_size();
  const std::int64_t start = loc(t, first);
  if (start >= 0 && start % span != 0) {
    refuse_value(kPages, "locations", "row ", t, ", column ", first, " is ", start, ", needs a multiple of ", span,
                 ": the allocator's page is page_size * world_size = ", layout.page_size(), " * ", layout.world_size(),
                 ", not page_size");
  }
  bool ended = start < 0;
  for (std::int64_t i = 1; i < std::min(span, loc.shape[1] - first); ++i) {
    const std::int64_t v = loc(t, first + i);
    ended = ended || v == -1;
    if (v != (ended ? -1 : start + i)) {
      refuse_value(kPages, "locations", "row ", t, ", column ", first + i, " is ", v, ", needs ",
                   ended ? -1 : start + i, ended ? " (the request ended before it)" : " (runs of a virtual page)");
    }
  }
}

}  // namespace

void dcp_slot_mapping(const DcpLayout& layout, const DcpSlotParams& p) {
  const auto positions = int_vector(kSlots, "positions", p.positions, kAny, "[T]");
  const std::int64_t rows = positions.shape[0];
  require_int(kSlots, "block_table", p.block_table);
  require_shape(kSlots, "block_table", p.block_table, {kAny, kAny}, "[R, W]");
  const IntView<2> table(p.block_table);
  if (!p.row_to_request && table.shape[0] != 1) {
    refuse_value(kSlots, "row_to_request", "is not given, needs [T] because block_table has ", table.shape[0], " rows");
  }
  const auto requests =
      p.row_to_request ? int_vector(kSlots, "row_to_request", p.row_to_request, rows, "[T]") : IntView<1>();
  layout.require_rank(kSlots, p.rank);
  require_output(kSlots, "out", p.out, DType::int64, {rows}, "[T]", {&p.positions, &p.row_to_request, &p.block_table});
  std::vector<std::int64_t> slots(static_cast<std::size_t>(rows), -1);
  for (std::int64_t t = 0; t < rows; ++t) {
    const std::int64_t v = positions(t);
    if (v == -1) continue;
    if (v < 0) refuse_index(kSlots, "positions", "row ", t, " is ", v, ", needs -1 or at least 0");
    const std::int64_t request = p.row_to_request ? requests(t) : 0;
    if (request < 0 || request >= table.shape[0]) {
      refuse_index(kSlots, "row_to_request", "row ", t, " is ", request, ", needs 0 to ", table.shape[0] - 1);
    }
    const std::int64_t page = page_of(layout, table, t, v, request);
    if (layout.owner(v) == p.rank) slots[t] = page * layout.page_size() + layout.local(v) % layout.page_size();
  }
  const auto out = p.out.as<std::int64_t, 1>();
  for (std::int64_t t = 0; t < rows; ++t) out(t) = slots[t];
}

DcpWrites dcp_writes(const DcpLayout& layout, const Tensor& locations, std::int64_t rank) {
  const auto view = checked_locations(layout, locations, rank);
  DcpWrites writes;
  for (std::int64_t t = 0; t < view.shape[0]; ++t) {
    const std::int64_t v = view(t);
    if (v < 0 || layout.owner(v) != rank) continue;
    writes.rows.push_back(t);
    writes.slots.push_back(layout.local(v));
  }
  return writes;
}

void dcp_fixed_writes(const DcpLayout& layout, const Tensor& locations, const Tensor& out, std::int64_t rank,
                      std::int64_t dummy) {
  const auto view = checked_locations(layout, locations, rank);
  if (dummy < -1) refuse_value(kWrites, "dummy", "is ", dummy, ", needs a physical row or -1");
  require_output(kWrites, "out", out, DType::int64, {view.shape[0]}, "[T]", {&locations});
  for (std::int64_t t = 0; t < view.shape[0]; ++t) {
    if (view(t) >= 0 && dummy >= 0 && layout.owner(view(t)) == rank && layout.local(view(t)) == dummy) {
      refuse_value(kWrites, "locations", "row ", t, " is ", view(t), ", which is the dummy row ", dummy,
                   " of this rank; keep virtual page ", dummy / layout.page_size(), " out of the allocator");
    }
  }
  const auto to = out.as<std::int64_t, 1>();
  for (std::int64_t t = 0; t < view.shape[0]; ++t) {
    const std::int64_t v = view(t);
    to(t) = v >= 0 && layout.owner(v) == rank ? layout.local(v) : dummy;
  }
}

void dcp_page_table(const DcpLayout& layout, const Tensor& locations, const Tensor& out, bool replicated) {
  const auto op = replicated ? kReplicatedPages : kPages;
  const std::int64_t span = replicated ? layout.page_size() : layout.virtual_page_size();
  require_int(op, "locations", locations);
  require_shape(op, "locations", locations, {kAny, kAny}, "[R, L]");
  const IntView<2> loc(locations);
  require_output(op, "out", out, DType::int64, {loc.shape[0], ceil_div(loc.shape[1], span)}, "[R, pages]",
                 {&locations});
  for (std::int64_t t = 0; t < loc.shape[0]; ++t) {
    for (std::int64_t first = 0; first < loc.shape[1]; first += layout.virtual_page_size()) {
      check_run(layout, loc, t, first);
    }
  }
  const auto pages = out.as<std::int64_t, 2>();
  for (std::int64_t t = 0; t < loc.shape[0]; ++t) {
    for (std::int64_t j = 0; j < pages.shape[1]; ++j) {
      const std::int64_t v = loc(t, j * span);
      pages(t, j) = v < 0 ? -1 : v / span;
    }
  }
}

std::vector<std::int64_t> dcp_chunk_rows(const DcpLayout& layout, const Tensor& locations, std::int64_t start,
                                         std::int64_t rank) {
  const auto loc = int_vector(kChunk, "locations", locations, kAny, "[L]");
  layout.require_rank(kChunk, rank);
  if (start < 0) refuse_value(kChunk, "start", "is ", start, ", needs at least 0");
  std::vector<std::int64_t> rows;
  for (std::int64_t i = 0; i < loc.shape[0]; ++i) {
    const std::int64_t v = loc(i);
    if (v < 0) refuse_index(kChunk, "locations", "row ", i, " is ", v, ", needs at least 0");
    if (v % layout.virtual_page_size() != (start + i) % layout.virtual_page_size()) {
      refuse_value(kChunk, "locations", "row ", i, " is ", v, ", needs the place in its virtual page that position ",
                   start + i, " has (", (start + i) % layout.virtual_page_size(), " of ", layout.virtual_page_size(),
                   "); is start the position of the first row?");
    }
    if (layout.owner(v) == rank) rows.push_back(layout.local(v));
  }
  return rows;
}

}  // namespace sparsespan
