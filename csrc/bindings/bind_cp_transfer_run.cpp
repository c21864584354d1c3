#include <pybind11/stl.h>

#include <array>
#include <cstring>
#include <tuple>
#include <utility>

#include "bindings/comm_support.h"
#include "parallel/transfer_run.h"

namespace sparsespan::bindings {

namespace {

constexpr std::string_view kOp = "run_transfer";
using Objects = std::vector<py::object>;
using Side = std::tuple<Objects, Objects, Objects, Objects>;  // kv, index, pages, index_pages
using Layouts = std::array<std::array<std::int64_t, 2>, 2>;   // (interleave, shards) by part

std::vector<Tensor> views(const char* side, const char* field, const Objects& arrays) {
  std::vector<Tensor> out;
  for (std::size_t i = 0; i < arrays.size(); ++i) {
    out.push_back(view(kOp, detail::join(side, ".", field, "[", i, "]"), arrays[i]));
  }
  return out;
}

TransferCaches caches_of(const char* name, const std::optional<Side>& side) {
  TransferCaches c;
  if (!side) return c;
  c.present = true;
  c.kv = views(name, "kv", std::get<0>(*side));
  c.index = views(name, "index", std::get<1>(*side));
  c.pages = views(name, "pages", std::get<2>(*side));
  c.index_pages = views(name, "index_pages", std::get<3>(*side));
  return c;
}

std::vector<Transfer> table_of(const py::array_t<std::int64_t, py::array::c_style>& rows) {
  std::vector<Transfer> table(static_cast<std::size_t>(rows.size()) * sizeof(std::int64_t) / sizeof(Transfer));
  if (!table.empty()) std::memcpy(table.data(), rows.data(), table.size() * sizeof(Transfer));
  return table;
}

struct Facts {  // of the plan
  Layouts src, dst;
  std::array<std::int64_t, 2> page_sizes, bytes;
};

RunTransferParams params_of(const py::array_t<std::int64_t, py::array::c_style>& rows, const Facts& facts,
                            const std::string& layout, const std::string& index_layout) {
  RunTransferParams p;
  p.table = table_of(rows);
  for (const int part : {0, 1}) {
    p.src_layout[part] = {facts.src[part][0], facts.src[part][1]};
    p.dst_layout[part] = {facts.dst[part][0], facts.dst[part][1]};
    p.bytes[part] = facts.bytes[part];
  }
  p.src_page_size = facts.page_sizes[0];
  p.dst_page_size = facts.page_sizes[1];
  p.layout = parse_kv_layout(kOp, "layout", layout);
  p.index_layout = parse_kv_layout(kOp, "index_layout", index_layout);
  return p;
}

// (sent, received, local, checksums, pages)
std::array<std::int64_t, 5> bind_run(
    Communicator& comm, const py::array_t<std::int64_t, py::array::c_style>& table,
    const std::tuple<Layouts, Layouts, std::array<std::int64_t, 2>, std::array<std::int64_t, 2>>& facts,
    const std::string& layout, const std::string& index_layout, const std::optional<Side>& source,
    const std::optional<Side>& dest, const std::vector<int>& prefill_ranks, const std::vector<int>& decode_ranks,
    const std::string& plan, int threads, std::optional<double> timeout) {
  const auto& [src, dst, page_sizes, bytes] = facts;
  auto p = params_of(table, {src, dst, page_sizes, bytes}, layout, index_layout);
  p.source = caches_of("source", source);
  p.dest = caches_of("dest", dest);
  p.prefill_ranks = prefill_ranks, p.decode_ranks = decode_ranks;
  p.plan = plan_hash(plan), p.threads = threads;
  const auto options = comm_options(timeout, plan, source, dest);
  TransferReport report;
  without_gil([&] { report = run_transfer(comm, p, options); });
  return {report.sent, report.received, report.local, report.checksums, report.pages};
}

}  // namespace

void register_cp_transfer_run(py::module_& parent) {
  auto m = parent.def_submodule("cp");
  m.def("run_transfer", &bind_run, py::arg("comm"), py::arg("table"), py::arg("facts"), py::arg("layout"),
        py::arg("index_layout"), py::arg("source"), py::arg("dest"), py::arg("prefill_ranks"), py::arg("decode_ranks"),
        py::arg("plan"), py::arg("threads"), py::arg("timeout"));
}

}  // namespace sparsespan::bindings
