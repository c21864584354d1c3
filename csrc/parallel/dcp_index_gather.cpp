#include "parallel/dcp_index_gather.h"

#include <cstring>

#include "parallel/comm_array.h"
#include "parallel/dcp_gather.h"

namespace sparsespan {

namespace {

Tensor vector_of(const std::vector<std::int64_t>& values) {
  Tensor t;
  t.data = const_cast<std::int64_t*>(values.data());
  t.dtype = DType::int64;
  t.rank = 1;
  t.shape[0] = static_cast<std::int64_t>(values.size());
  t.strides[0] = 1;
  t.present = true;
  return t;
}

Tensor array_of(void* data, DType dtype, std::int64_t rows, std::int64_t columns) {
  Tensor t;
  t.data = data;
  t.dtype = dtype;
  t.rank = columns == 0 ? 1 : 2;
  t.shape = {rows, columns};
  t.strides = columns == 0 ? decltype(t.strides){1} : decltype(t.strides){columns, 1};
  t.present = true;
  return t;
}

}  // namespace

GatheredIndexK gather_index_k(std::string_view op, Communicator& comm, const DcpLayout& layout, const PagedCache& cache,
                              const IntView<2>& table, const std::vector<std::int64_t>& lengths,
                              const CommOptions& options) {
  const KvLayoutInfo& info = layout_info(cache.layout);
  const std::int64_t key_bytes = info.token_stride();
  const std::int64_t bytes = info.bytes_per_token();
  const bool scaled = info.scale_field() != nullptr;
  const DcpGatherPlan plan = dcp_gather_plan(layout, vector_of(lengths), Tensor{});
  const DcpSendRows mine = dcp_send_rows(layout, vector_of(lengths), Tensor{}, comm.rank());
  const CommArray send(op, DType::uint8, {plan.send_rows, bytes});
  const CommArray all(op, DType::uint8, {comm.size() * plan.send_rows, bytes});
  for (std::int64_t i = 0; i < plan.send_rows; ++i) {
    std::byte* to = send.data<std::byte>() + i * bytes;
    const std::int64_t l = mine.local[i];
    if (l < 0) {
      std::memset(to, 0, static_cast<std::size_t>(bytes));
      continue;
    }
    const std::int64_t slot = table(mine.request[i], l / cache.page_size) * cache.page_size + l % cache.page_size;
    std::memcpy(to, cache.token(slot), static_cast<std::size_t>(key_bytes));
    if (scaled) std::memcpy(to + key_bytes, cache.tail(slot, sizeof(float)), sizeof(float));
  }
  comm.iall_gather(send.tensor(), all.tensor(), touching(options, send, all))->wait();
  GatheredIndexK g;
  const auto rows = static_cast<std::int64_t>(plan.source_rows.size());
  g.keys = Scratch<std::byte>(rows * key_bytes);
  g.scales = Scratch<float>(scaled ? rows : 0);
  for (std::int64_t i = 0; i < rows; ++i) {
    const std::byte* from = all.data<std::byte>() + plan.source_rows[i] * bytes;
    std::memcpy(g.keys.data() + i * key_bytes, from, static_cast<std::size_t>(key_bytes));
    if (scaled) std::memcpy(g.scales.data() + i, from + key_bytes, sizeof(float));
  }
  g.k = array_of(g.keys.data(), info.fields[0].dtype, rows, info.dim);
  if (scaled) g.k_scale = array_of(g.scales.data(), DType::float32, rows, 0);
  return g;
}

}  // namespace sparsespan
