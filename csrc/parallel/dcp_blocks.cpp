#include <algorithm>
#include <limits>

#include "core/scratch.h"
#include "parallel/dcp_tables.h"

namespace sparsespan {

namespace {

constexpr std::string_view kTable = "dcp_layout.replicated_table";
constexpr std::string_view kBlocks = "dcp_layout.block_gather";

IntView<2> checked_table(std::string_view op, const Tensor& block_table) {
  require_int(op, "block_table", block_table);
  require_shape(op, "block_table", block_table, {kAny, kAny}, "[R, W]");
  const IntView<2> table(block_table);
  for (std::int64_t r = 0; r < table.shape[0]; ++r) {
    for (std::int64_t j = 0; j < table.shape[1]; ++j) {
      if (table(r, j) < -1) {
        refuse_index(op, "block_table", "row ", r, ", column ", j, " is ", table(r, j), ", needs -1 or a page id");
      }
    }
  }
  return table;
}

IntView<1> checked_lengths(std::string_view op, const Tensor& lengths, std::int64_t requests) {
  if (!lengths) return {};
  require_int(op, "lengths", lengths);
  require_shape(op, "lengths", lengths, {requests}, "[R]");
  const IntView<1> view(lengths);
  for (std::int64_t r = 0; r < requests; ++r) {
    if (view(r) < 0) refuse_value(op, "lengths", "row ", r, " is ", view(r), ", needs at least 0");
  }
  return view;
}

void check_replicated(const DcpLayout& layout, const DcpReplicatedParams& p, const IntView<2>& table) {
  const std::int64_t n = layout.world_size();
  if (p.sub_blocks < 1 || layout.page_size() % p.sub_blocks != 0) {
    refuse_value(kTable, "sub_blocks", "is ", p.sub_blocks, ", needs a divisor of page_size = ", layout.page_size());
  }
  if (table.shape[1] % p.sub_blocks != 0) {
    refuse_value(kTable, "block_table", "has ", table.shape[1],
                 " columns, needs a multiple of sub_blocks = ", p.sub_blocks);
  }
  const std::int64_t top = p.block_table.dtype == DType::int64 ? std::numeric_limits<std::int64_t>::max()
                                                               : std::numeric_limits<std::int32_t>::max();
  for (std::int64_t r = 0; r < table.shape[0]; ++r) {
    for (std::int64_t j = 0; j < table.shape[1]; ++j) {
      if (table(r, j) > top / n - p.sub_blocks) {
        refuse_index(kTable, "block_table", "row ", r, ", column ", j, " is ", table(r, j), ", its ", n,
                     " index pages do not fit ", name_of(p.block_table.dtype));
      }
    }
  }
}

template <class T>
void replicate(const DcpLayout& layout, const DcpReplicatedParams& p, const IntView<2>& table,
               const IntView<1>& lengths) {
  const std::int64_t n = layout.world_size();
  const std::int64_t sub = p.sub_blocks;
  const auto out = p.out.as<T, 2>();
  for (std::int64_t r = 0; r < table.shape[0]; ++r) {
    const bool idle = p.lengths && lengths(r) == 0;
    for (std::int64_t j = 0; j < out.shape[1]; ++j) {
      const std::int64_t page = table(r, j / (n * sub) * sub + j % sub);
      const std::int64_t rank = j / sub % n;
      out(r, j) = static_cast<T>(idle ? 0 : page < 0 ? -1 : (page / sub * n + rank) * sub + page % sub);
    }
  }
}

}  // namespace

void dcp_replicated_table(const DcpLayout& layout, const DcpReplicatedParams& p) {
  const auto table = checked_table(kTable, p.block_table);
  const auto lengths = checked_lengths(kTable, p.lengths, table.shape[0]);
  check_replicated(layout, p, table);
  require_output(kTable, "out", p.out, p.block_table.dtype, {table.shape[0], table.shape[1] * layout.world_size()},
                 "[R, W * N]", {&p.block_table, &p.lengths});
  if (p.block_table.dtype == DType::int64) {
    replicate<std::int64_t>(layout, p, table, lengths);
  } else {
    replicate<std::int32_t>(layout, p, table, lengths);
  }
}

DcpBlockGather dcp_block_gather(const DcpLayout& layout, const Tensor& block_table, const Tensor& lengths) {
  const auto table = checked_table(kBlocks, block_table);
  const auto lens = checked_lengths(kBlocks, lengths, table.shape[0]);
  const std::int64_t width = table.shape[1];
  const auto used = [&](std::int64_t r) {
    if (!lengths) return width;
    const std::int64_t pages = lens(r) / layout.virtual_page_size() + (lens(r) % layout.virtual_page_size() != 0);
    if (pages > width) {
      refuse_value(kBlocks, "lengths", "row ", r, " is ", lens(r), ", needs at most ",
                   width * layout.virtual_page_size(), " (", width, " columns of page_size * world_size)");
    }
    return pages;
  };
  DcpBlockGather gather;
  for (std::int64_t r = 0; r < table.shape[0]; ++r) {
    const std::int64_t pages = used(r);
    for (std::int64_t j = 0; j < pages; ++j) {
      if (table(r, j) >= 0) gather.ids.push_back(table(r, j));
      if (table(r, j) < 0 && lengths) {
        refuse_index(kBlocks, "block_table", "row ", r, ", column ", j, " is -1, length ", lens(r),
                     " needs a page there");
      }
    }
  }
  std::sort(gather.ids.begin(), gather.ids.end());
  gather.ids.erase(std::unique(gather.ids.begin(), gather.ids.end()), gather.ids.end());
  for (std::int64_t r = 0; r < table.shape[0]; ++r) {
    const std::int64_t pages = used(r);
    for (std::int64_t j = 0; j < width; ++j) {
      const std::int64_t page = j < pages ? table(r, j) : -1;
      const auto at = std::lower_bound(gather.ids.begin(), gather.ids.end(), page);
      gather.inverse.push_back(page < 0 ? -1 : at - gather.ids.begin());
    }
  }
  return gather;
}

}  // namespace sparsespan
