#include <pybind11/stl.h>

#include "bindings/arrays.h"
#include "parallel/dcp_capacity.h"
#include "parallel/dcp_gather.h"
#include "parallel/dcp_remap.h"
#include "parallel/dcp_tables.h"

namespace sparsespan::bindings {

namespace {

using Layout = DcpLayout;

py::array to_array(const std::vector<std::int64_t>& values) {
  return py::array_t<std::int64_t>(static_cast<py::ssize_t>(values.size()), values.data());
}

std::int64_t extent(const Tensor& t, int axis) { return axis < t.rank ? t.shape[axis] : 0; }

py::object map(const Layout& layout, DcpMap kind, const py::object& in, std::int64_t rank, bool all, int threads) {
  DcpMapParams p;
  p.map = kind;
  p.rank = all ? DcpMapParams::kAllRanks : rank;
  if (!all && kind != DcpMap::owner && kind != DcpMap::local) layout.require_rank("dcp_layout", rank);
  p.in = rows_view("dcp_layout", "array", in);
  if (p.in.dtype != DType::int32 && p.in.dtype != DType::int64) require_int("dcp_layout", "array", p.in);
  py::object result = empty_like(in, p.in.dtype);
  if (all) {
    auto shape = py::cast<std::vector<py::ssize_t>>(in.attr("shape"));
    shape.push_back(layout.world_size());
    result = py::array(numpy_dtype(p.in.dtype), shape);
  }
  p.out = rows_view("dcp_layout", "out", result);
  p.threads = threads;
  without_gil([&] { dcp_map(layout, p); });
  return result;
}

py::tuple remap(const Layout& layout, const py::object& indices, std::int64_t rank, const py::object& context_lens,
                const py::object& topk_length, bool lanes, bool counts, const py::object& out, int threads,
                const std::string& validate) {
  constexpr auto kOp = "dcp_layout.remap_topk";
  RemapTopkParams p;
  p.indices = view(kOp, "indices", indices);
  p.context_lens = view(kOp, "context_lens", context_lens);
  p.topk_length = view(kOp, "topk_length", topk_length);
  const auto rows = extent(p.indices, 0);
  const py::object result = out_or_empty(out, p.indices.dtype, {rows, extent(p.indices, 1)});
  const py::object lane = lanes ? out_or_empty(py::none(), p.indices.dtype, {rows, extent(p.indices, 1)}) : py::none();
  const py::object count = counts ? py::object(empty(DType::int32, {rows})) : py::none();
  p.out = view(kOp, "out", result);
  p.lanes = view(kOp, "lanes", lane);
  p.counts = view(kOp, "counts", count);
  p.rank = rank;
  p.threads = threads;
  p.validate = parse_validate(kOp, validate);
  without_gil([&] { remap_topk(layout, p); });
  return py::make_tuple(result, lane, count);
}

py::object packed_rows(const Layout& layout, const py::object& indices, std::int64_t prefix, std::int64_t total,
                       std::int64_t topk, const py::object& out, int threads) {
  constexpr auto kOp = "dcp_layout.packed_rows";
  PackedRowsParams p;
  p.indices = view(kOp, "indices", indices);
  const py::object result = out_or_empty(out, p.indices.dtype, {extent(p.indices, 0), extent(p.indices, 1)});
  p.out = view(kOp, "out", result);
  p.prefix_len = prefix;
  p.total_len = total;
  p.index_topk = topk;
  p.threads = threads;
  without_gil([&] { dcp_packed_rows(layout, p); });
  return result;
}

py::object slot_mapping(const Layout& layout, const py::object& positions, const py::object& block_table,
                        std::int64_t rank, const py::object& row_to_request, const py::object& out) {
  constexpr auto kOp = "dcp_layout.slot_mapping";
  DcpSlotParams p;
  p.positions = view(kOp, "positions", positions);
  p.block_table = view(kOp, "block_table", block_table);
  p.row_to_request = view(kOp, "row_to_request", row_to_request);
  const py::object result = out_or_empty(out, DType::int64, {extent(p.positions, 0)});
  p.out = view(kOp, "out", result);
  p.rank = rank;
  without_gil([&] { dcp_slot_mapping(layout, p); });
  return result;
}

py::tuple writes(const Layout& layout, const py::object& locations, std::int64_t rank) {
  const auto w = dcp_writes(layout, view("dcp_layout.write_plan", "locations", locations), rank);
  return py::make_tuple(to_array(w.rows), to_array(w.slots));
}

py::object fixed_writes(const Layout& layout, const py::object& locations, std::int64_t rank, std::int64_t dummy) {
  constexpr auto kOp = "dcp_layout.write_plan";
  const Tensor in = view(kOp, "locations", locations);
  const py::object out = empty(DType::int64, {extent(in, 0)});
  dcp_fixed_writes(layout, in, view(kOp, "out", out), rank, dummy);
  return out;
}

py::object page_table(const Layout& layout, const py::object& locations, bool replicated) {
  constexpr auto kOp = "dcp_layout.page_table";
  const Tensor in = view(kOp, "locations", locations);
  const std::int64_t span = replicated ? layout.page_size() : layout.virtual_page_size();
  const py::object out = empty(DType::int64, {extent(in, 0), (extent(in, 1) + span - 1) / span});
  dcp_page_table(layout, in, view(kOp, "out", out), replicated);
  return out;
}

py::object chunk_rows(const Layout& layout, const py::object& locations, std::int64_t start, std::int64_t rank) {
  return to_array(dcp_chunk_rows(layout, view("dcp_layout.chunk_rows", "locations", locations), start, rank));
}

py::object replicated_table(const Layout& layout, const py::object& table, const py::object& lengths,
                            std::int64_t sub_blocks) {
  constexpr auto kOp = "dcp_layout.replicated_table";
  DcpReplicatedParams p;
  p.block_table = view(kOp, "block_table", table);
  p.lengths = view(kOp, "lengths", lengths);
  p.sub_blocks = sub_blocks;
  const py::object out = out_or_empty(py::none(), p.block_table.dtype,
                                      {extent(p.block_table, 0), extent(p.block_table, 1) * layout.world_size()});
  p.out = view(kOp, "out", out);
  dcp_replicated_table(layout, p);
  return out;
}

py::tuple block_gather(const Layout& layout, const py::object& table, const py::object& lengths) {
  constexpr auto kOp = "dcp_layout.block_gather";
  const Tensor in = view(kOp, "block_table", table);
  const auto g = dcp_block_gather(layout, in, view(kOp, "lengths", lengths));
  const std::vector<py::ssize_t> shape{in.shape[0], in.shape[1]};
  return py::make_tuple(to_array(g.ids), to_array(g.inverse).reshape(shape));
}

py::tuple gather_plan(const Layout& layout, const py::object& lengths, const py::object& starts) {
  constexpr auto kOp = "dcp_layout.gather_plan";
  const auto plan = dcp_gather_plan(layout, view(kOp, "lengths", lengths), view(kOp, "starts", starts));
  return py::make_tuple(plan.send_rows, to_array(plan.padded), to_array(plan.base), to_array(plan.first),
                        to_array(plan.source_rows));
}

py::tuple send_rows(const Layout& layout, const py::object& lengths, const py::object& starts, std::int64_t rank) {
  constexpr auto kOp = "dcp_layout.gather_plan";
  const auto rows = dcp_send_rows(layout, view(kOp, "lengths", lengths), view(kOp, "starts", starts), rank);
  return py::make_tuple(to_array(rows.request), to_array(rows.local));
}

std::int64_t bytes_of(const char* argument, const py::object& layout, bool index) {
  if (py::isinstance<py::str>(layout)) {
    return kv_bytes_of("dcp_layout.capacity", argument, py::cast<std::string>(layout), index);
  }
  return py::cast<std::int64_t>(layout);
}

py::tuple capacity(const Layout& layout, std::int64_t memory, std::int64_t reserved, const py::object& kv,
                   const py::object& index, std::int64_t shards, std::int64_t kv_layers, std::int64_t index_layers,
                   std::int64_t reserved_pages) {
  const auto c = dcp_capacity(layout, {.memory_bytes = memory,
                                       .reserved_bytes = reserved,
                                       .kv_bytes = bytes_of("kv_layout", kv, false),
                                       .index_bytes = index.is_none() ? 0 : bytes_of("index_layout", index, true),
                                       .index_shards = shards,
                                       .kv_layers = kv_layers,
                                       .index_layers = index_layers,
                                       .reserved_pages = reserved_pages});
  return py::make_tuple(c.pages, c.tokens_per_rank, c.tokens, c.page_bytes, c.baseline_tokens, c.gain);
}

py::tuple heads(const Layout& layout, std::int64_t count, std::int64_t tp, std::int64_t multiple) {
  const auto h = dcp_heads(layout, count, tp, multiple);
  return py::make_tuple(h.local, h.gathered, h.padded);
}

}  // namespace

void register_cp_dcp(py::module_& parent) {
  auto m = parent.def_submodule("cp");
  py::enum_<DcpMap>(m, "DcpMap")
      .value("owner", DcpMap::owner)
      .value("local", DcpMap::local)
      .value("logical", DcpMap::logical)
      .value("local_len", DcpMap::local_len)
      .value("visible_len", DcpMap::visible_len);
  auto c = py::class_<Layout>(m, "DcpLayout");
  c.def(py::init<std::int64_t, std::int64_t, std::int64_t>(), py::arg("interleave"), py::arg("world_size"),
        py::arg("page_size"));
  c.def_property_readonly("text", &Layout::text).def_property_readonly("fingerprint", &Layout::fingerprint);
  c.def("map", &map).def("remap_topk", &remap).def("packed_rows", &packed_rows).def("slot_mapping", &slot_mapping);
  c.def("writes", &writes).def("fixed_writes", &fixed_writes).def("page_table", &page_table);
  c.def("chunk_rows", &chunk_rows).def("replicated_table", &replicated_table).def("block_gather", &block_gather);
  c.def("gather_plan", &gather_plan).def("send_rows", &send_rows).def("capacity", &capacity).def("heads", &heads);
}

}  // namespace sparsespan::bindings
