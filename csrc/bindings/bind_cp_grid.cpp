#include <pybind11/stl.h>

#include <optional>

#include "bindings/arrays.h"
#include "parallel/rank_grid.h"

namespace sparsespan::bindings {

namespace {

RankGrid make_grid(const std::optional<std::int64_t>& tp, std::int64_t cp, std::int64_t dcp, std::int64_t pp,
                   std::int64_t dp, std::int64_t ep, const std::string& flavor, std::int64_t moe_dp,
                   std::int64_t attn_cp, const std::string& axis, const std::optional<std::string>& strategy,
                   const std::optional<std::int64_t>& heads, std::int64_t kv_heads, bool sparse) {
  if (tp && *tp == 0) refuse_value("rank_grid", "tp", "is 0, needs at least 1, or None for attention TP = dcp");
  if (heads && *heads == 0) refuse_value("rank_grid", "heads", "is 0, needs at least 1, or None");
  return RankGrid({.flavor = grid_flavor(flavor),
                   .tp = tp.value_or(0),
                   .cp = cp,
                   .dcp = dcp,
                   .pp = pp,
                   .dp = dp,
                   .ep = ep,
                   .moe_dp = moe_dp,
                   .attn_cp = attn_cp,
                   .dcp_axis = dcp_axis(axis),
                   .strategy = cp_strategy(strategy.value_or("")),
                   .heads = heads.value_or(0),
                   .kv_heads = kv_heads,
                   .sparse = sparse});
}

std::vector<std::vector<std::int32_t>> group_lists(const RankGrid& grid, const std::string& name) {
  const auto& g = grid.group(name);
  std::vector<std::vector<std::int32_t>> lists;
  for (auto at = g.ranks.begin(); at != g.ranks.end(); at += g.size) lists.emplace_back(at, at + g.size);
  return lists;
}

// (group number, index in the group)
std::pair<std::int64_t, std::int64_t> locate(const RankGrid& grid, const std::string& name, std::int64_t rank) {
  const auto& g = grid.group(name);
  if (rank < 0 || rank >= grid.world_size()) {
    refuse_index("rank_grid", "rank", "is ", rank, ", needs 0 to ", grid.world_size() - 1);
  }
  return {g.place[rank] / g.size, g.place[rank] % g.size};
}

std::vector<std::int32_t> group_of(const RankGrid& grid, const std::string& name, std::int64_t rank) {
  const auto first = grid.group(name).ranks.begin() + locate(grid, name, rank).first * grid.group(name).size;
  return {first, first + grid.group(name).size};
}

std::vector<std::string> names(const RankGrid& grid) {
  std::vector<std::string> list;
  for (const auto& g : grid.groups()) list.push_back(g.name);
  return list;
}

}  // namespace

void register_cp_grid(py::module_& parent) {
  auto m = parent.def_submodule("cp");
  auto grid = py::class_<RankGrid>(m, "RankGrid");
  grid.def(py::init(&make_grid), py::arg("tp"), py::arg("cp"), py::arg("dcp"), py::arg("pp"), py::arg("dp"),
           py::arg("ep"), py::arg("flavor"), py::arg("moe_dp"), py::arg("attn_cp"), py::arg("dcp_axis"),
           py::arg("cp_strategy"), py::arg("heads"), py::arg("kv_heads"), py::arg("sparse"));
  grid.def_property_readonly("tp", [](const RankGrid& g) { return g.params().tp; });
  grid.def_property_readonly("world_size", &RankGrid::world_size);
  grid.def_property_readonly("attn_tp", &RankGrid::attn_tp);
  grid.def_property_readonly("fingerprint", &RankGrid::fingerprint);
  grid.def_property_readonly("text", &RankGrid::text);
  grid.def_property_readonly("names", &names);
  grid.def("groups", &group_lists, py::arg("name"));
  grid.def("group_of", &group_of, py::arg("name"), py::arg("rank"));
  grid.def("locate", &locate, py::arg("name"), py::arg("rank"));
}

}  // namespace sparsespan::bindings
