#include <pybind11/stl.h>

#include <cstring>
#include <tuple>
#include <utility>

#include "bindings/arrays.h"
#include "parallel/split_plan.h"

namespace sparsespan::bindings {

namespace {

using Plan = std::shared_ptr<const CpPlan>;
using PlanClass = py::class_<CpPlan, std::shared_ptr<CpPlan>>;

py::array to_array(const Ints& values) {
  py::array out = empty(DType::int64, {static_cast<std::int64_t>(values.size())});
  if (!values.empty()) std::memcpy(out.mutable_data(), values.data(), values.size() * sizeof(std::int64_t));
  return out;
}

std::shared_ptr<CpPlan> bind_split_plan(const std::string& scheme, const py::object& cu_seqlens,
                                        const py::object& prefix_lens, std::int64_t world_size,
                                        const py::object& row_kind, std::optional<std::int64_t> pad_to,
                                        const std::string& flavor) {
  SplitPlanParams p{
      scheme,     view("split_plan", "cu_seqlens", cu_seqlens), view("split_plan", "prefix_lens", prefix_lens),
      world_size, view("split_plan", "row_kind", row_kind),     pad_to,
      flavor};
  Plan plan;
  without_gil([&] { plan = split_plan(p); });
  return std::const_pointer_cast<CpPlan>(plan);  // pybind11 holds no shared_ptr to const; every method is const
}

// A method that gives one array per (rank, length).
template <auto Method>
py::array per_row(const CpPlan& plan, std::int64_t rank, std::int64_t length) {
  return to_array((plan.*Method)(rank, length));
}

template <auto Method>
py::array per_rank(const CpPlan& plan, std::int64_t rank) {
  return to_array((plan.*Method)(rank));
}

template <auto Method>
py::array of_plan(const CpPlan& plan) {
  return to_array((plan.*Method)());
}

std::pair<py::array, py::array> bind_ks_ke(const CpPlan& plan, std::int64_t rank, std::int64_t length) {
  const auto [ks, ke] = plan.ks_ke(rank, length);
  return {to_array(ks), to_array(ke)};
}

std::tuple<py::array, py::array, py::array, py::array, py::array> bind_segments(const CpPlan& plan, std::int64_t rank) {
  const CpSegments s = plan.segments(rank);
  return {to_array(s.request), to_array(s.part), to_array(s.q_start), to_array(s.q_len), to_array(s.kv_len)};
}

std::tuple<py::array, py::array, std::int64_t> bind_seq_lens(const CpPlan& plan, std::int64_t rank) {
  const CpSeqLens lens = plan.seq_lens(rank);
  return {to_array(lens.q), to_array(lens.kv), lens.parts};
}

py::array bind_slots(const CpPlan& plan, const py::object& slots, std::int64_t rank, std::int64_t length) {
  return to_array(plan.slot_mapping(view("CpPlan.slot_mapping", "global_slots", slots), rank, length));
}

std::vector<double> bind_costs(const CpPlan& plan, const std::string& cost, std::int64_t topk) {
  if (topk < 1) refuse_value("CpPlan", "topk", "is ", topk, ", needs at least 1");
  if (cost == "rows") return plan.rank_costs(CpCost::rows, topk);
  if (cost == "indexer") return plan.rank_costs(CpCost::indexer, topk);
  if (cost == "attention") return plan.rank_costs(CpCost::attention, topk);
  refuse_value("CpPlan", "cost", "is \"", cost, "\", needs \"indexer\", \"attention\" or \"rows\"");
}

void bind_row_methods(PlanClass& c) {
  c.def("rank_rows", &per_row<&CpPlan::rank_rows>, py::arg("rank"), py::arg("length"));
  c.def("positions", &per_row<&CpPlan::positions>, py::arg("rank"), py::arg("length"));
  c.def("context_lens", &per_row<&CpPlan::context_lens>, py::arg("rank"), py::arg("length"));
  c.def("kv_write_mask", &per_row<&CpPlan::kv_write_mask>, py::arg("rank"), py::arg("length"));
  c.def("ks_ke", &bind_ks_ke, py::arg("rank"), py::arg("length"));
  c.def("slot_mapping", &bind_slots, py::arg("global_slots"), py::arg("rank"), py::arg("length"));
  c.def(
      "row_to_request",
      [](const CpPlan& plan, std::int64_t rank, std::int64_t length, bool include_pads) {
        return to_array(plan.row_to_request(rank, length, include_pads));
      },
      py::arg("rank"), py::arg("length"), py::arg("include_pads"));
}

void bind_rank_methods(PlanClass& c) {
  c.def("segments", &bind_segments, py::arg("rank"));
  c.def("seq_lens", &bind_seq_lens, py::arg("rank"));
  c.def("request_counts", &per_rank<&CpPlan::request_counts>, py::arg("rank"));
  c.def("kept_requests", &per_rank<&CpPlan::kept_requests>, py::arg("rank"));
  c.def(
      "part_rows", [](const CpPlan& plan, std::int64_t rank, int part) { return to_array(plan.part_rows(rank, part)); },
      py::arg("rank"), py::arg("part"));
  c.def("rank_costs", &bind_costs, py::arg("cost"), py::arg("topk"));
}

void bind_facts(PlanClass& c) {
  c.def("counts", &of_plan<&CpPlan::counts>).def("real_counts", &of_plan<&CpPlan::real_counts>);
  c.def("owner", &of_plan<&CpPlan::owner>).def("last_row_owner", &of_plan<&CpPlan::last_row_owner>);
  c.def("last_row_index", &of_plan<&CpPlan::last_row_index>);
  c.def("restore_index", &of_plan<&CpPlan::restore_index>);
  c.def("nbytes", &CpPlan::nbytes).def("padded_len", &CpPlan::padded_len).def("fingerprint", &CpPlan::fingerprint);
  c.def("k_starts", [](const CpPlan& plan) { return to_array(plan.batch().k_start); });
  c.def("real_lens", [](const CpPlan& plan) { return to_array(plan.batch().real); });
  c.def("split_lens", [](const CpPlan& plan) { return to_array(plan.batch().split_len); });
  c.def("cu_seqlens", [](const CpPlan& plan) { return to_array(plan.batch().cu); });
  c.def("prefix_lens", [](const CpPlan& plan) { return to_array(plan.batch().prefix); });
  c.def("decode_requests", &of_plan<&CpPlan::decode_requests>);
  c.def("row_kind", [](const CpPlan& plan) -> py::object {
    const auto& kind = plan.batch().kind;
    return kind.empty() ? py::object(py::none()) : py::object(to_array(Ints(kind.begin(), kind.end())));
  });
  c.def("replicated",
        [](const CpPlan& plan) { return to_array(Ints(plan.batch().whole.begin(), plan.batch().whole.end())); });
  c.def(
      "equals", [](const CpPlan& plan, const CpPlan& other) { return plan == other; }, py::arg("other"));
}

}  // namespace

void register_cp_split(py::module_& parent) {
  auto m = parent.def_submodule("cp");
  PlanClass c(m, "CpPlan");
  bind_facts(c);
  bind_row_methods(c);
  bind_rank_methods(c);
  m.def("split_plan", &bind_split_plan, py::arg("scheme"), py::arg("cu_seqlens"), py::arg("prefix_lens"),
        py::arg("world_size"), py::arg("row_kind"), py::arg("pad_to"), py::arg("flavor"));
}

}  // namespace sparsespan::bindings
