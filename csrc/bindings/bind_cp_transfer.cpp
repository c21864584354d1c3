#include <pybind11/stl.h>

#include <array>
#include <cstring>

#include "bindings/arrays.h"
#include "parallel/transfer_plan.h"

namespace sparsespan::bindings {

namespace {

py::array int64_array(const std::vector<std::int64_t>& values) {
  py::array out = empty(DType::int64, {static_cast<std::int64_t>(values.size())});
  if (!values.empty()) std::memcpy(out.mutable_data(), values.data(), values.size() * sizeof(std::int64_t));
  return out;
}

KvSide side_of(const std::string& name, const py::dict& d) {
  KvSide side;
  side.tp = d["tp"].cast<std::int64_t>();
  side.cp = d["cp"].cast<std::int64_t>();
  side.pp = d["pp"].cast<std::int64_t>();
  side.dcp = d["dcp"].cast<std::int64_t>();
  side.kv = parse_kv_placement(name + ".kv", d["kv"].cast<std::string>());
  side.interleave = d["interleave"].cast<std::int64_t>();
  side.page_size = d["page_size"].cast<std::int64_t>();
  side.index_sharded = d["index_sharded"].cast<bool>();
  side.stages = d["stages"].cast<std::vector<std::int64_t>>();
  return side;
}

using Ints = std::vector<std::int64_t>;

// [transfers, 16] int64: the fields of Transfer in order.
py::array bind_plan(const py::dict& prefill, const py::dict& decode, const Ints& lengths, const Ints& present,
                    std::int64_t num_layers, std::int64_t kv_bytes, std::int64_t index_bytes, const Ints& index_layers,
                    const std::string& spread) {
  TransferParams p{side_of("prefill", prefill),
                   side_of("decode", decode),
                   num_layers,
                   kv_bytes,
                   index_bytes,
                   index_layers,
                   lengths,
                   present,
                   parse_spread(spread)};
  std::vector<Transfer> plan;
  without_gil([&] { plan = transfer_plan(p); });
  py::array out = empty(DType::int64, {static_cast<std::int64_t>(plan.size()), 16});
  if (!plan.empty()) std::memcpy(out.mutable_data(), plan.data(), plan.size() * sizeof(Transfer));
  return out;
}

// {src block, src ranks, dst block, dst ranks, src class, dst class, start, stop}
PositionSet set_of(const std::array<std::int64_t, 8>& v) {
  return {.src = {v[0], v[1]}, .dst = {v[2], v[3]}, .src_class = v[4], .dst_class = v[5], .start = v[6], .stop = v[7]};
}

py::array bind_slots(const std::array<std::int64_t, 8>& set, bool source, const py::object& table,
                     std::int64_t page_size) {
  TransferSlotsParams p{set_of(set), source, view("transfer_slots", "table", table), page_size};
  return int64_array(transfer_slots(p));
}

}  // namespace

void register_cp_transfer(py::module_& parent) {
  auto m = parent.def_submodule("cp");
  m.def("transfer_plan", &bind_plan, py::arg("prefill"), py::arg("decode"), py::arg("lengths"), py::arg("present"),
        py::arg("num_layers"), py::arg("kv_bytes"), py::arg("index_bytes"), py::arg("index_layers"), py::arg("spread"));
  m.def(
      "transfer_positions",
      [](const std::array<std::int64_t, 8>& set) { return int64_array(positions_of(set_of(set))); }, py::arg("set"));
  m.def("transfer_slots", &bind_slots, py::arg("set"), py::arg("source"), py::arg("table"), py::arg("page_size"));
}

}  // namespace sparsespan::bindings
