#include <pybind11/stl.h>

#include <utility>

#include "bindings/comm_support.h"
#include "parallel/cp_cache.h"
#include "parallel/cp_heads.h"
#include "quant/cache_write.h"

namespace sparsespan::bindings {

namespace {

using Plan = std::shared_ptr<CpPlan>;
using Started = std::pair<std::shared_ptr<CpWork>, py::object>;  // the work and its result
using Timeout = std::optional<double>;

// `out` itself, or a new array like x with another number of rows.
py::object rows_or_new(const py::object& out, const Tensor& x, std::int64_t rows) {
  if (!out.is_none() || !x || x.rank == 0 || x.dtype == DType::other || x.dtype == DType::none) return out;
  std::vector<py::ssize_t> shape(x.shape.begin(), x.shape.begin() + x.rank);
  shape[0] = rows;
  return py::array(numpy_dtype(x.dtype), shape);
}

py::object bind_split(const py::object& x, const Plan& plan, std::int64_t rank, const py::object& out, int threads) {
  SplitRowsParams p{.x = view("split", "x", x), .out = {}, .rank = rank, .threads = threads};
  const bool known = rank >= 0 && rank < plan->batch().world_size;  // else the core says so
  const auto result = rows_or_new(out, p.x, known ? plan->counts()[rank] : 0);
  p.out = view("split", "out", result);
  without_gil([&] { split_rows(*plan, p); });
  return result;
}

Started bind_gather_rows(Communicator& comm, const py::object& x, const Plan& plan, bool last, const py::object& out,
                         int threads, Timeout timeout) {
  GatherRowsParams p{.x = view("gather_rows", "x_local", x), .out = {}, .last = last, .threads = threads};
  const auto result = rows_or_new(out, p.x, last ? plan->batch().requests() : plan->batch().rows());
  p.out = view("gather_rows", "out", result);
  const auto options = comm_options(timeout, "", x, result);
  std::shared_ptr<CpWork> work;
  without_gil([&] { work = igather_rows(comm, plan, p, options); });
  return {work, result};
}

// [t, C, ...] and [N t, C / N, ...]: the shape of the result, as far as x has one; the core refuses the rest.
py::object heads_or_new(const py::object& out, const Tensor& x, std::int64_t n, bool back) {
  const int cut = back ? 0 : 1;
  if (!out.is_none() || !x || x.rank < 2 || x.shape[cut] % n != 0 || x.dtype == DType::other) return out;
  std::vector<py::ssize_t> shape(x.shape.begin(), x.shape.begin() + x.rank);
  shape[cut] /= n;
  shape[1 - cut] *= n;
  return py::array(numpy_dtype(x.dtype), shape);
}

Started bind_exchange_heads(Communicator& comm, const py::object& x, bool back, const py::object& out, int threads,
                            Timeout timeout) {
  ExchangeHeadsParams p{.x = view("exchange_heads", "x", x), .out = {}, .back = back, .threads = threads};
  const auto result = heads_or_new(out, p.x, comm.size(), back);
  p.out = view("exchange_heads", "out", result);
  const auto options = comm_options(timeout, "", x, result);
  std::shared_ptr<CpWork> work;
  without_gil([&] { work = iexchange_heads(comm, p, options); });
  return {work, result};
}

// caches: (kv, index or None, layout, index_layout, page_size, scale_rule, scale_fmt)
using Caches =
    std::tuple<py::object, py::object, std::string, std::string, std::int64_t, std::string, std::optional<std::string>>;

Started bind_gather_kv(Communicator& comm, const py::object& c_kv, const py::object& k_pe, const py::object& k_index,
                       const Caches& caches, const Plan& plan, const py::object& slot_mapping, int threads,
                       Timeout timeout, const std::string& validate) {
  constexpr std::string_view kOp = "gather_kv_and_cache";
  const auto& [kv, index, layout, index_layout, page_size, rule, scale_fmt] = caches;
  GatherKvParams p;
  p.c_kv = rows_view(kOp, "c_kv", c_kv);
  p.k_pe = rows_view(kOp, "k_pe", k_pe);
  p.k_index = rows_view(kOp, "k_index", k_index);
  p.kv_cache = view(kOp, "caches.kv", kv);
  p.index_cache = view(kOp, "caches.index", index);
  p.slot_mapping = view(kOp, "slot_mapping", slot_mapping);
  p.layout = parse_kv_layout(kOp, "caches.layout", layout);
  p.index_layout = parse_kv_layout(kOp, "caches.index_layout", index_layout);
  p.page_size = page_size, p.threads = threads, p.validate = parse_validate(kOp, validate);
  p.rule = parse_scale_rule(kOp, "caches.scale_rule", rule);
  p.index_rule = scale_fmt ? parse_scale_fmt(kOp, "caches.scale_fmt", *scale_fmt) : ScaleRule::official_f32;
  const auto options = comm_options(timeout, "", c_kv, k_pe, k_index, kv, index);
  std::shared_ptr<CpWork> work;
  without_gil([&] { work = igather_kv_and_cache(comm, plan, p, options); });
  return {work, py::none()};
}

}  // namespace

void register_cp_work(py::module_& parent) {
  auto m = parent.def_submodule("cp");
  py::class_<CpWork, std::shared_ptr<CpWork>>(m, "CpWork")
      .def("test", &CpWork::test, py::call_guard<py::gil_scoped_release>())
      .def(
          "wait", [](CpWork& self, Timeout timeout) { self.wait(timeout.value_or(-1)); },
          py::arg("timeout") = py::none(), py::call_guard<py::gil_scoped_release>());
  m.def("split", &bind_split, py::arg("x"), py::arg("plan"), py::arg("rank"), py::arg("out"), py::arg("threads"));
  m.def("gather_rows", &bind_gather_rows, py::arg("comm"), py::arg("x_local"), py::arg("plan"), py::arg("last"),
        py::arg("out"), py::arg("threads"), py::arg("timeout"));
  m.def("exchange_heads", &bind_exchange_heads, py::arg("comm"), py::arg("x"), py::arg("back"), py::arg("out"),
        py::arg("threads"), py::arg("timeout"));
  m.def("gather_kv_and_cache", &bind_gather_kv, py::arg("comm"), py::arg("c_kv"), py::arg("k_pe"), py::arg("k_index"),
        py::arg("caches"), py::arg("plan"), py::arg("slot_mapping"), py::arg("threads"), py::arg("timeout"),
        py::arg("validate"));
}

}  // namespace sparsespan::bindings
