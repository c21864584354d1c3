#include "indexer/slots.h"

#include <limits>

#include "core/parallel.h"
#include "core/scratch.h"

namespace sparsespan {

namespace {

constexpr std::string_view kOp = "to_slots";
constexpr std::int64_t kRowsPerTask = 16;

void validate_shapes(const ToSlotsParams& p) {
  require_dtype(kOp, "indices", p.indices, {DType::int32});
  require_shape(kOp, "indices", p.indices, {kAny, kAny}, "[T, K]");
  const std::int64_t rows = p.indices.shape[0];
  require_int(kOp, "row_to_request", p.row_to_request);
  require_shape(kOp, "row_to_request", p.row_to_request, {rows}, "[T]");
  require_int(kOp, "block_table", p.block_table);
  require_shape(kOp, "block_table", p.block_table, {kAny, kAny}, "[B, max_blocks]");
  if (p.page_size < 1) refuse_value(kOp, "page_size", "is ", p.page_size, ", needs at least 1");
  checked_product(kOp, "page_size", p.page_size, p.block_table.shape[1]);
  if (p.ks) {
    require_int(kOp, "ks", p.ks);
    require_shape(kOp, "ks", p.ks, {rows}, "[T]");
  }
  require_output(kOp, "out", p.out, DType::int32, {rows, p.indices.shape[1]}, "[T, K]",
                 {&p.indices, &p.row_to_request, &p.block_table, &p.ks});
  const IntView<1> requests(p.row_to_request);
  for (std::int64_t row = 0; p.ks && row < rows; ++row) {
    const std::int64_t start = IntView<1>(p.ks)(row);
    if (start < 0 || start > std::numeric_limits<std::int32_t>::max()) {
      refuse_value(kOp, "ks", "has ", start, " at row ", row, ", needs 0 <= ks <= 2147483647");
    }
  }
  for (std::int64_t row = 0; row < rows; ++row) {
    if (requests(row) < -1 || requests(row) >= p.block_table.shape[0]) {
      refuse_index(kOp, "row_to_request", "has ", requests(row), " at row ", row, ", needs -1 or 0 <= request < ",
                   p.block_table.shape[0]);
    }
  }
}

struct Row {
  std::int64_t row;
  std::int64_t request;
  std::int64_t start;     // what logical counts from
  std::int64_t capacity;  // positions that the request's pages can name
};

Row row_of(const ToSlotsParams& p, std::int64_t row) {
  const std::int64_t request = IntView<1>(p.row_to_request)(row);
  return {row, request, p.ks ? IntView<1>(p.ks)(row) : 0, request < 0 ? 0 : p.block_table.shape[1] * p.page_size};
}

// The slot of one index other than -1; refuses what names no token.
std::int64_t slot_of(const ToSlotsParams& p, const Row& r, std::int64_t column, std::int64_t index) {
  const std::int64_t logical = index - r.start;
  if (index < 0 || logical < 0 || logical >= r.capacity) {
    refuse_index(kOp, "indices", "has ", index, " at row ", r.row, ", column ", column, ", needs -1 or ", r.start,
                 " <= index < ", r.start + r.capacity, r.request < 0 ? " (the row belongs to no request)" : "");
  }
  const std::int64_t page = IntView<2>(p.block_table)(r.request, logical / p.page_size);
  const std::int64_t limit = std::numeric_limits<std::int32_t>::max();
  if (page < 0 || page > (limit - p.page_size + 1) / p.page_size) {
    refuse_index(kOp, "block_table", "has ", page, " at request ", r.request, ", block ", logical / p.page_size,
                 ", which row ", r.row, ", column ", column, " needs; a page is at least 0 and its slots fit int32");
  }
  return page * p.page_size + logical % p.page_size;
}

template <class Each>
void for_each_row(const ToSlotsParams& p, Each&& each) {
  const std::int64_t rows = p.indices.shape[0];
  parallel_for(ceil_div(rows, kRowsPerTask), p.threads, [&](std::int64_t task, int) {
    for (std::int64_t row = task * kRowsPerTask; row < std::min(rows, (task + 1) * kRowsPerTask); ++row) each(row);
  });
}

}  // namespace

void to_slots(const ToSlotsParams& p) {
  validate_shapes(p);
  const auto indices = p.indices.as<const std::int32_t, 2>();
  const auto out = p.out.as<std::int32_t, 2>();
  const auto translate = [&](std::int64_t row, bool write) {
    const Row r = row_of(p, row);
    for (std::int64_t j = 0; j < indices.shape[1]; ++j) {
      const std::int64_t index = indices(row, j);
      const std::int64_t slot = index == -1 ? -1 : slot_of(p, r, j, index);
      if (write) out(row, j) = static_cast<std::int32_t>(slot);
    }
  };
  // Everything is looked at before anything is stored.
  if (p.validate == Validate::full) for_each_row(p, [&](std::int64_t row) { translate(row, false); });
  for_each_row(p, [&](std::int64_t row) { translate(row, true); });
}

}  // namespace sparsespan
