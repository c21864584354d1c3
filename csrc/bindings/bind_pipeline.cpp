#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include "bindings/arrays.h"
#include "pipeline/generate.h"
#include "pipeline/lower.h"
#include "pipeline/schedule.h"
#include "pipeline/validate.h"

namespace sparsespan::bindings {

namespace {

using pipeline::Action;
using pipeline::Rules;
using pipeline::Schedule;

using Rows = py::typing::Iterable<py::typing::Iterable<py::object>>;

// Cells from Python: None, an Action, or its text.
Action cell(const py::handle& object, std::int64_t rank, std::int64_t step) {
  if (object.is_none()) return {};
  if (py::isinstance<Action>(object)) return object.cast<Action>();
  if (!py::isinstance<py::str>(object)) {
    refuse_type("Schedule", "ranks", "holds a ", py::str(py::type::of(object).attr("__name__")).cast<std::string>(),
                " at [", rank, "][", step, "], needs None, an Action or its text");
  }
  const auto text = object.cast<std::string>();
  return text.empty() ? Action{} : pipeline::parse_action(text, rank + 1, 1);
}

std::vector<std::vector<Action>> cells(const Rows& lists) {
  std::vector<std::vector<Action>> ranks;
  for (const py::handle list : lists) {
    std::vector<Action> row;
    for (const py::handle object : list) {
      row.push_back(cell(object, static_cast<std::int64_t>(ranks.size()), static_cast<std::int64_t>(row.size())));
    }
    ranks.push_back(std::move(row));
  }
  return ranks;
}

py::typing::List<py::typing::List<py::object>> to_lists(const Schedule& s) {
  py::typing::List<py::typing::List<py::object>> ranks;
  for (const auto& list : s.ranks) {
    py::list row;
    for (const Action& a : list) row.append(a.kind == pipeline::Kind::idle ? py::none() : py::cast(a));
    ranks.append(std::move(row));
  }
  return ranks;
}

void bind_action(py::module_& m) {
  py::class_<Action>(m, "Action", "One cell of a schedule; see sparsespan.pipeline.Schedule for the text form.")
      .def(py::init([](const std::string& text) { return pipeline::parse_action(text, 1, 1); }), py::arg("text"))
      .def_property_readonly("kind", [](const Action& a) { return std::string(name_of(a.kind)); })
      .def_readonly("stage", &Action::stage)
      .def_readonly("microbatch", &Action::microbatch)
      .def_readonly("request", &Action::request)
      .def_readonly("start", &Action::start)
      .def_readonly("length", &Action::length)
      .def_readonly("parts", &Action::parts)
      .def("__str__", [](const Action& a) { return to_text(a); })
      .def("__repr__", [](const Action& a) { return "Action('" + to_text(a) + "')"; })
      .def("__hash__", [](const Action& a) { return std::hash<std::string>{}(to_text(a)); })
      .def("__eq__", [](const Action& a, const py::object& b) {
        return py::isinstance<Action>(b) && a == b.cast<const Action&>();
      });
}

void bind_schedule(py::module_& m) {
  py::class_<Schedule>(m, "Schedule")
      .def(py::init([](const Rows& ranks, std::int64_t stages, std::int64_t microbatches, const std::string& mode) {
             return pipeline::make_schedule(cells(ranks), stages, microbatches, mode);
           }),
           py::arg("ranks"), py::arg("stages"), py::arg("microbatches"), py::arg("mode"))
      .def_static(
          "from_csv",
          [](const std::string& text, std::int64_t stages, std::int64_t microbatches, const std::string& mode) {
            return pipeline::make_schedule(pipeline::parse_csv(text), stages, microbatches, mode);
          },
          py::arg("text"), py::arg("stages"), py::arg("microbatches"), py::arg("mode"))
      .def_readonly("stages", &Schedule::stages)
      .def_readonly("microbatches", &Schedule::microbatches)
      .def_property_readonly("mode", [](const Schedule& s) { return std::string(name_of(s.mode)); })
      .def_property_readonly("size", &Schedule::size)
      .def_property_readonly("communicates", &Schedule::has_communication)
      .def("to_csv", &pipeline::to_csv, py::arg("torch"))
      .def("grid", [](const Schedule& s) { return pipeline::grid(s); })
      .def("to_lists", &to_lists)
      .def("__len__", [](const Schedule& s) { return s.ranks.size(); })
      .def("equals", [](const Schedule& a, const Schedule& b) { return a == b; });
}

void bind_rules(py::module_& m) {
  py::class_<Rules>(m, "Rules")
      .def(py::init<>())
      .def_readwrite("ranks", &Rules::ranks)
      .def_readwrite("stages", &Rules::stages)
      .def_readwrite("microbatches", &Rules::microbatches)
      .def_property(
          "sends", [](const Rules& r) { return std::string(name_of(r.sends)); },
          [](Rules& r, const std::string& text) { r.sends = pipeline::parse_transport("validate", text); })
      .def_readwrite("lockstep", &Rules::lockstep)
      .def_readwrite("max_active_stages", &Rules::max_active_stages)
      .def_readwrite("stage_bytes", &Rules::stage_bytes)
      .def_readwrite("weight_budget", &Rules::weight_budget)
      .def_readwrite("max_activations", &Rules::max_activations)
      .def_readwrite("max_kv_tokens", &Rules::max_kv_tokens)
      .def_readwrite("stage_layers", &Rules::stage_layers)
      .def_readwrite("shared_indexer", &Rules::shared_indexer);
}

template <class F>
auto released(F&& f) {
  py::gil_scoped_release release;
  return f();
}

void bind_generators(py::module_& m) {
  m.def("gpipe", &pipeline::gpipe, py::arg("ranks"), py::arg("microbatches"));
  m.def("one_f_one_b", &pipeline::one_f_one_b, py::arg("ranks"), py::arg("microbatches"));
  m.def("interleaved", &pipeline::interleaved, py::arg("ranks"), py::arg("microbatches"), py::arg("stages_per_rank"));
  m.def("zero_bubble_h1", &pipeline::zero_bubble_h1, py::arg("ranks"), py::arg("microbatches"),
        py::arg("stages_per_rank"));
  m.def("zero_bubble_v", &pipeline::zero_bubble_v, py::arg("ranks"), py::arg("microbatches"));
  m.def("dualpipe_v", &pipeline::dualpipe_v, py::arg("ranks"), py::arg("microbatches"));
  m.def("chunked_prefill", &pipeline::chunked_prefill, py::arg("ranks"), py::arg("chunks"), py::arg("prefixes"));
  m.def("decode_loop", &pipeline::decode_loop, py::arg("ranks"), py::arg("steps"), py::arg("depth"), py::arg("batch"));
  m.def("mixed_prefill_decode", &pipeline::mixed_prefill_decode, py::arg("ranks"), py::arg("chunks"), py::arg("prefix"),
        py::arg("depth"), py::arg("batch"));
}

}  // namespace

void register_pipeline(py::module_& parent) {
  auto m = parent.def_submodule("pipeline");
  py::register_local_exception<pipeline::schedule_error>(m, "ScheduleError", PyExc_ValueError);
  bind_action(m);
  bind_schedule(m);
  bind_rules(m);
  bind_generators(m);
  m.def(
      "validate",
      [](const Schedule& s, const Rules& rules) {
        released([&] {
          pipeline::validate(s, rules);
          return 0;
        });
      },
      py::arg("schedule"), py::arg("rules"));
  m.def(
      "add_send_recv",
      [](const Schedule& s, const Rules& rules) { return released([&] { return pipeline::add_send_recv(s, rules); }); },
      py::arg("schedule"), py::arg("rules"));
  m.def(
      "add_fetch_evict",
      [](const Schedule& s, std::int64_t most, const std::vector<double>& bytes, double budget) {
        return released([&] { return pipeline::add_fetch_evict(s, most, bytes, budget); });
      },
      py::arg("schedule"), py::arg("max_active"), py::arg("stage_bytes"), py::arg("budget"));
  m.def("merge_backward", &pipeline::merge_backward, py::arg("schedule"));
}

}  // namespace sparsespan::bindings
