#include <pybind11/functional.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <limits>

#include "bindings/arrays.h"
#include "pipeline/chunking.h"
#include "pipeline/simulate.h"
#include "pipeline/sm_waves.h"

namespace sparsespan::bindings {

namespace {

using pipeline::Action;
using pipeline::ChunkCost;
using pipeline::ChunkRule;
using pipeline::Costs;
using pipeline::Schedule;
using pipeline::Simulation;

std::size_t kind_index(const std::string& name) {
  for (int k = 1; k < pipeline::kKinds; ++k) {
    if (name_of(static_cast<pipeline::Kind>(k)) == name) return static_cast<std::size_t>(k);
  }
  refuse_value("Costs", "kind", "is '", name, "', which no action has");
}

py::array_t<double> row(const std::vector<double>& values) {
  return py::array_t<double>(static_cast<py::ssize_t>(values.size()), values.data());
}

using Rows = py::typing::List<py::array_t<double>>;

Rows rows(const std::vector<std::vector<double>>& table) {
  Rows list;
  for (const auto& values : table) list.append(row(values));
  return list;
}

void bind_costs(py::module_& m) {
  py::class_<Costs>(m, "Costs")
      .def(py::init<>())
      .def("set", [](Costs& c, const std::string& kind, double value) { c.fixed[kind_index(kind)] = value; })
      .def("set",
           [](Costs& c, const std::string& kind, const ChunkCost& cost) {
             kind_index(kind);
             c.prefill = cost;
           })
      .def("set", [](Costs& c, const std::string& kind,
                     std::function<double(const Action&)> f) { c.custom[kind_index(kind)] = std::move(f); })
      .def_readwrite("overlap", &Costs::overlap)
      .def_readwrite("stage_weights", &Costs::stage_weights)
      .def_readwrite("message_bytes", &Costs::message_bytes)
      .def_readwrite("kv_bytes", &Costs::kv_bytes)
      .def("set_link", [](Costs& c, double latency, double bandwidth) {
        c.link = {latency, bandwidth};
      });
}

void bind_simulation(py::module_& m) {
  py::class_<Simulation>(m, "Simulation")
      .def_property_readonly("makespan", [](const Simulation& s) { return s.spans.makespan; })
      .def_property_readonly("busy", [](const Simulation& s) { return s.spans.busy; })
      .def_readonly("bubble", &Simulation::bubble)
      .def_readonly("peak_activations", &Simulation::peak_activations)
      .def_readonly("peak_kv_bytes", &Simulation::peak_kv_bytes)
      .def_property_readonly("start", [](const Simulation& s) { return rows(s.spans.start); })
      .def_property_readonly("end", [](const Simulation& s) { return rows(s.spans.end); });
  m.def(
      "simulate",
      [](const Schedule& s, const Costs& costs, const std::string& transport) {
        const auto how = pipeline::parse_transport("simulate", transport);
        const pipeline::Durations durations = price(s, costs);  // may call Python
        Simulation result;
        without_gil([&] { result = simulate(s, costs, durations, how); });
        return result;
      },
      py::arg("schedule"), py::arg("costs"), py::arg("transport"));
}

py::typing::Dict<py::str, py::object> bind_sm_waves(std::vector<double> tiles, std::int64_t sms, std::int64_t reserved,
                                                    std::int64_t grid, double reserved_until) {
  const auto result = pipeline::sm_waves({std::move(tiles), sms, reserved, grid, reserved_until});
  py::typing::Dict<py::str, py::object> d;
  d["waves"] = result.waves;
  d["alone"] = result.alone;
  d["time"] = result.time;
  d["best_grid"] = result.best_grid;
  d["best_time"] = result.best_time;
  return d;
}

}  // namespace

void register_pipeline_cost(py::module_& parent) {
  auto m = parent.def_submodule("pipeline");
  py::class_<ChunkCost>(m, "ChunkCost", "a (C H + C^2 / 2) + b C + c for a chunk of C tokens after a prefix of H.")
      .def(py::init<double, double, double>(), py::arg("a"), py::arg("b"), py::arg("c"))
      .def_readonly("a", &ChunkCost::a)
      .def_readonly("b", &ChunkCost::b)
      .def_readonly("c", &ChunkCost::c)
      .def("__call__", &ChunkCost::seconds, py::arg("length"), py::arg("prefix"));
  bind_costs(m);
  bind_simulation(m);
  m.def("fit_chunk_cost", &pipeline::fit_chunk_cost, py::arg("lengths"), py::arg("prefixes"), py::arg("seconds"));
  m.def(
      "chunk_sizes",
      [](std::int64_t total, std::int64_t first, const ChunkCost& cost, double smooth, std::int64_t align,
         std::int64_t floor, std::int64_t cap, std::int64_t prefix) {
        return pipeline::chunk_sizes({total, first, cost, smooth, align, floor, cap, prefix});
      },
      py::arg("total"), py::arg("first"), py::arg("cost"), py::arg("smooth"), py::arg("align"), py::arg("floor"),
      py::arg("cap"), py::arg("prefix"));
  m.def("split_layers", &pipeline::split_layers, py::arg("num_layers"), py::arg("pp"), py::arg("flavor"));
  m.def("balance_layers", &pipeline::balance_layers, py::arg("num_layers"), py::arg("pp"), py::arg("chunks"),
        py::arg("extra"));
  m.def("sm_waves", &bind_sm_waves, py::arg("tiles"), py::arg("sms"), py::arg("reserved"), py::arg("grid"),
        py::arg("reserved_until"));
}

}  // namespace sparsespan::bindings
