// The indexer under DCP: top-k over a context that ranks share.

#include <pybind11/stl.h>

#include "bindings/comm_support.h"
#include "parallel/dcp_select.h"
#include "parallel/topk_exchange.h"

namespace sparsespan::bindings {

namespace {

std::int64_t extent(const Tensor& t, int axis) { return axis < t.rank ? t.shape[axis] : 0; }

indexer::NanRule parse_nan(std::string_view op, const std::string& text) {
  if (text == "raise") return indexer::NanRule::raise;
  if (text == "lowest") return indexer::NanRule::lowest;
  refuse_value(op, "nan", "is \"", text, "\", needs \"raise\" or \"lowest\"");
}

py::object bind_global_topk(Communicator& comm, const DcpLayout& layout, const py::object& scores, std::int64_t k,
                            const py::object& context_lens, const std::string& exchange, const std::string& nan,
                            const py::object& out, std::optional<double> timeout, const std::string& validate,
                            int threads) {
  constexpr std::string_view kOp = "global_topk";
  GlobalTopkParams p{.scores = view(kOp, "scores", scores), .context_lens = view(kOp, "context_lens", context_lens)};
  p.k = k, p.threads = threads;
  p.route = parse_topk_route(kOp, exchange), p.nan = parse_nan(kOp, nan);
  p.validate = parse_validate(kOp, validate);
  p.comm = comm_options(timeout, "");
  const py::object result = out_or_empty(out, DType::int32, {extent(p.scores, 0), std::max<std::int64_t>(k, 0)});
  p.out = view(kOp, "out", result);
  without_gil([&] { global_topk(comm, layout, p); });
  return result;
}

py::object bind_dcp_select(Communicator& comm, const DcpLayout& layout, const py::object& q,
                           const py::object& index_cache, const py::object& weights, const py::object& context_lens,
                           const py::object& block_table, std::int64_t topk, const std::string& index_k,
                           const std::string& index_layout, const std::string& nan, const py::object& out,
                           std::optional<double> timeout, const std::string& validate, int threads) {
  constexpr std::string_view kOp = "dcp_select";
  DcpSelectParams p{.q = view(kOp, "q", q), .index_cache = view(kOp, "index_cache", index_cache)};
  p.weights = view(kOp, "weights", weights), p.context_lens = view(kOp, "context_lens", context_lens);
  p.block_table = view(kOp, "block_table", block_table);
  p.topk = topk, p.index_layout = index_layout, p.threads = threads;
  p.design = parse_dcp_index_k(kOp, index_k), p.nan = parse_nan(kOp, nan);
  p.validate = parse_validate(kOp, validate);
  p.comm = comm_options(timeout, "");
  const py::object result = out_or_empty(out, DType::int32, {extent(p.weights, 0), std::max<std::int64_t>(topk, 0)});
  p.out = view(kOp, "out", result);
  without_gil([&] { dcp_select(comm, layout, p); });
  return result;
}

}  // namespace

void register_cp_dcp_select(py::module_& parent) {
  auto m = parent.def_submodule("cp");
  m.def("global_topk", &bind_global_topk, py::arg("comm"), py::arg("layout"), py::arg("scores"), py::arg("k"),
        py::arg("context_lens"), py::arg("exchange"), py::arg("nan"), py::arg("out"), py::arg("timeout"),
        py::arg("validate"), py::arg("threads"));
  m.def("dcp_select", &bind_dcp_select, py::arg("comm"), py::arg("layout"), py::arg("q"), py::arg("index_cache"),
        py::arg("weights"), py::arg("context_lens"), py::arg("block_table"), py::arg("topk"), py::arg("index_k"),
        py::arg("index_layout"), py::arg("nan"), py::arg("out"), py::arg("timeout"), py::arg("validate"),
        py::arg("threads"));
}

}  // namespace sparsespan::bindings
