#include <pybind11/stl.h>

#include <utility>

#include "bindings/comm_support.h"
#include "pipeline/layer_shard.h"

namespace sparsespan::bindings {

namespace {

using pipeline::LayerShard;
using pipeline::ShardOrder;
using pipeline::ShardSeries;
using pipeline::ShardShape;

std::vector<Tensor> views(const py::list& arrays) {
  std::vector<Tensor> tensors;
  tensors.reserve(arrays.size());
  for (const py::handle array : arrays) {
    tensors.push_back(view("LayerShard", "series", py::reinterpret_borrow<py::object>(array)));
  }
  return tensors;
}

std::shared_ptr<LayerShard> make(const std::shared_ptr<Communicator>& comm, const ShardShape& shape,
                                 const std::vector<std::tuple<std::string, py::list, py::list>>& series) {
  std::vector<ShardSeries> list;
  for (const auto& [name, owned, windows] : series) {
    list.push_back({name, views(owned), views(windows), keep_alive(owned, windows)});
  }
  std::shared_ptr<LayerShard> shard;
  without_gil([&] { shard = std::make_shared<LayerShard>(comm, shape, std::move(list)); });
  return shard;
}

void bind_order(py::module_& m) {
  py::class_<ShardOrder>(m, "ShardOrder", "Owners, targets and windows of a layer shard.")
      .def(py::init([](std::int64_t start, std::int64_t layers, std::int64_t ranks, std::int64_t prefetch, bool fixed) {
             return ShardOrder({start, layers, ranks, prefetch, fixed});
           }),
           py::arg("start"), py::arg("layers"), py::arg("ranks"), py::arg("prefetch"), py::arg("fixed_addresses"))
      .def_property_readonly("windows", &ShardOrder::windows)
      .def_property_readonly("expected", &ShardOrder::expected)
      .def("owner", &ShardOrder::owner, py::arg("layer"))
      .def("target", &ShardOrder::target, py::arg("layer"))
      .def("window", &ShardOrder::window, py::arg("layer"))
      .def("seed",
           [](ShardOrder& order) {
             std::vector<std::pair<std::int64_t, std::int64_t>> loads;
             for (const auto& load : order.seed()) loads.emplace_back(load.layer, load.window);
             return loads;
           })
      .def(
          "reach",
          [](ShardOrder& order, std::int64_t layer) {
            const auto load = order.reach(layer);
            return std::make_pair(load.layer, load.window);
          },
          py::arg("layer"));
}

std::map<std::string, std::vector<double>> times(const pipeline::PrefetchTimes& t) {
  return {{"broadcast", {t.broadcast}}, {"makespan", {t.makespan}}, {"stall", t.stall},
          {"issued", t.issued},         {"ready", t.ready},         {"start", t.start}};
}

}  // namespace

void register_layer_shard(py::module_& parent) {
  auto m = parent.def_submodule("pipeline");
  const auto released = py::call_guard<py::gil_scoped_release>();
  bind_order(m);
  py::class_<LayerShard, std::shared_ptr<LayerShard>>(m, "LayerShard")
      .def(py::init([](const std::shared_ptr<Communicator>& comm, std::int64_t start, std::int64_t layers,
                       std::int64_t prefetch, bool fixed,
                       const std::vector<std::tuple<std::string, py::list, py::list>>& series) {
             return make(comm, {start, layers, comm->size(), prefetch, fixed}, series);
           }),
           py::arg("comm"), py::arg("start"), py::arg("layers"), py::arg("prefetch"), py::arg("fixed_addresses"),
           py::arg("series"))
      .def("reach", &LayerShard::reach, py::arg("layer"), released)
      .def("wait", &LayerShard::wait, py::arg("layer"), py::arg("number"), released)
      .def("poll", &LayerShard::poll, released)
      .def("wait_all", &LayerShard::wait_all, released)
      .def("reset", &LayerShard::reset, released)
      .def_property_readonly("expected", [](const LayerShard& s) { return s.order().expected(); })
      .def_property_readonly("under_way", &LayerShard::under_way);
  m.def(
      "simulate_prefetch",
      [](std::vector<double> layer_seconds, double weight_bytes, std::int64_t prefetch, double bandwidth,
         double latency, std::int64_t lanes) {
        return times(
            pipeline::simulate_prefetch({std::move(layer_seconds), weight_bytes, prefetch, bandwidth, latency, lanes}));
      },
      py::arg("layer_seconds"), py::arg("weight_bytes"), py::arg("prefetch"), py::arg("bandwidth"), py::arg("latency"),
      py::arg("lanes"));
}

}  // namespace sparsespan::bindings
