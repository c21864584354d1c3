// DCP decode: what ranks do together. The plain data of the layout is in bind_cp_dcp.cpp.

#include <pybind11/stl.h>

#include "bindings/comm_support.h"
#include "parallel/dcp_decode.h"

namespace sparsespan::bindings {

namespace {

std::int64_t extent(const Tensor& t, int axis) { return axis < t.rank ? t.shape[axis] : 0; }

DType parse_out_dtype(std::string_view op, const std::string& out_dtype, DType otherwise) {
  if (out_dtype.empty()) return otherwise;
  if (out_dtype == name_of(DType::float32)) return DType::float32;
  if (out_dtype == name_of(DType::bfloat16)) return DType::bfloat16;
  refuse_value(op, "out_dtype", "is \"", out_dtype, "\", needs \"float32\" or \"bfloat16\"");
}

// (out [T, heads, d_v], lse [T, heads]), given or new.
struct Results {
  py::object out, lse;
  Tensor out_view, lse_view;

  Results(std::string_view op, const py::object& given, DType dtype, std::int64_t rows, std::int64_t heads,
          std::int64_t d_v) {
    const bool both = py::isinstance<py::tuple>(given);
    const py::object pair = both ? given : py::make_tuple(given, py::none());
    if (py::len(pair) != 2) refuse_value(op, "out", "has ", py::len(pair), " entries, needs (out, lse)");
    out = out_or_empty(pair[py::int_(0)], dtype, {rows, heads, std::max<std::int64_t>(d_v, 0)});
    lse = out_or_empty(pair[py::int_(1)], DType::float32, {rows, heads});
    out_view = view(op, "out", out);
    lse_view = view(op, "lse", lse);
  }
  py::tuple pair() const { return py::make_tuple(out, lse); }
};

DcpSelection selection_of(std::string_view op, const py::object& indices, const py::object& block_table,
                          const py::object& row_to_request, const py::object& context_lens,
                          const py::object& topk_length) {
  return {.indices = view(op, "indices", indices),
          .topk_length = view(op, "topk_length", topk_length),
          .context_lens = view(op, "context_lens", context_lens),
          .row_to_request = view(op, "row_to_request", row_to_request),
          .block_table = view(op, "block_table", block_table)};
}

py::tuple bind_dcp_decode(Communicator& comm, const DcpLayout& layout, const py::object& q, const py::object& q_pe,
                          const py::object& kv_cache, const py::object& indices, const py::object& block_table,
                          float sm_scale, const py::object& row_to_request, const py::object& context_lens,
                          const py::object& topk_length, const py::object& attn_sink, const std::string& kv_layout,
                          std::int64_t d_v, const std::string& combine, const std::string& payload, bool replicate_q,
                          std::int64_t head_pad, std::optional<bool> lanes, const std::string& out_dtype,
                          const py::object& out, std::optional<double> timeout, const std::string& validate,
                          int threads) {
  constexpr std::string_view kOp = "dcp_decode";
  DcpDecodeParams p{.q = view(kOp, "q", q), .q_pe = view(kOp, "q[1]", q_pe)};
  p.kv_cache = view(kOp, "kv_cache", kv_cache);
  p.kv_layout = parse_kv_layout(kOp, "kv_layout", kv_layout);
  p.selection = selection_of(kOp, indices, block_table, row_to_request, context_lens, topk_length);
  p.sm_scale = sm_scale, p.d_v = d_v, p.replicate_q = replicate_q, p.head_pad = head_pad, p.lanes = lanes;
  p.validate = parse_validate(kOp, validate);
  p.combine.combine = parse_dcp_combine(kOp, combine), p.combine.payload = parse_dcp_payload(kOp, payload);
  p.combine.attn_sink = view(kOp, "attn_sink", attn_sink);
  p.combine.comm = comm_options(timeout, "", q, q_pe), p.combine.threads = threads;
  const std::int64_t heads = extent(p.q, 1) / (replicate_q ? comm.size() : 1);
  const Results results(kOp, out, parse_out_dtype(kOp, out_dtype, p.q.dtype), extent(p.q, 0), heads, d_v);
  p.combine.out = results.out_view, p.combine.lse = results.lse_view;
  without_gil([&] { dcp_decode(comm, layout, p); });
  return results.pair();
}

py::tuple bind_dcp_partial(const DcpLayout& layout, std::int64_t rank, const py::object& q, const py::object& q_pe,
                           const py::object& kv_cache, const py::object& indices, const py::object& block_table,
                           float sm_scale, const py::object& row_to_request, const py::object& context_lens,
                           const py::object& topk_length, const std::string& kv_layout, std::int64_t d_v, bool lanes,
                           const std::string& out_dtype, const py::object& out, const std::string& validate,
                           int threads) {
  constexpr std::string_view kOp = "dcp_partial";
  DcpPartialParams p{.q = view(kOp, "q", q), .q_pe = view(kOp, "q[1]", q_pe)};
  p.kv_cache = view(kOp, "kv_cache", kv_cache);
  p.kv_layout = parse_kv_layout(kOp, "kv_layout", kv_layout);
  p.selection = selection_of(kOp, indices, block_table, row_to_request, context_lens, topk_length);
  p.sm_scale = sm_scale, p.d_v = d_v, p.lanes = lanes, p.threads = threads;
  p.validate = parse_validate(kOp, validate);
  const Results results(kOp, out, parse_out_dtype(kOp, out_dtype, DType::float32), extent(p.q, 0), extent(p.q, 1), d_v);
  p.out = results.out_view, p.lse = results.lse_view;
  without_gil([&] { dcp_partial(layout, rank, p); });
  return results.pair();
}

py::tuple bind_dcp_combine(Communicator& comm, const py::object& partial_out, const py::object& partial_lse,
                           const py::object& attn_sink, const std::string& combine, const std::string& payload,
                           const std::string& out_dtype, const py::object& out, std::optional<double> timeout,
                           const std::string& plan, int threads) {
  constexpr std::string_view kOp = "dcp_combine";
  DcpCombineParams p{.partial_out = view(kOp, "partial_out", partial_out),
                     .partial_lse = view(kOp, "partial_lse", partial_lse)};
  p.attn_sink = view(kOp, "attn_sink", attn_sink);
  p.combine = parse_dcp_combine(kOp, combine), p.payload = parse_dcp_payload(kOp, payload);
  p.comm = comm_options(timeout, plan), p.threads = threads;
  const Results results(kOp, out, parse_out_dtype(kOp, out_dtype, p.partial_out.dtype), extent(p.partial_out, 0),
                        extent(p.partial_out, 1) / comm.size(), extent(p.partial_out, 2));
  p.out = results.out_view, p.lse = results.lse_view;
  without_gil([&] { dcp_combine(comm, p); });
  return results.pair();
}

}  // namespace

void register_cp_dcp_ops(py::module_& parent) {
  auto m = parent.def_submodule("cp");
  m.def("dcp_decode", &bind_dcp_decode, py::arg("comm"), py::arg("layout"), py::arg("q"), py::arg("q_pe"),
        py::arg("kv_cache"), py::arg("indices"), py::arg("block_table"), py::arg("sm_scale"), py::arg("row_to_request"),
        py::arg("context_lens"), py::arg("topk_length"), py::arg("attn_sink"), py::arg("kv_layout"), py::arg("d_v"),
        py::arg("combine"), py::arg("payload"), py::arg("replicate_q").noconvert(), py::arg("head_pad"),
        py::arg("lanes"), py::arg("out_dtype"), py::arg("out"), py::arg("timeout"), py::arg("validate"),
        py::arg("threads"));
  m.def("dcp_partial", &bind_dcp_partial, py::arg("layout"), py::arg("rank"), py::arg("q"), py::arg("q_pe"),
        py::arg("kv_cache"), py::arg("indices"), py::arg("block_table"), py::arg("sm_scale"), py::arg("row_to_request"),
        py::arg("context_lens"), py::arg("topk_length"), py::arg("kv_layout"), py::arg("d_v"),
        py::arg("lanes").noconvert(), py::arg("out_dtype"), py::arg("out"), py::arg("validate"), py::arg("threads"));
  m.def("dcp_combine", &bind_dcp_combine, py::arg("comm"), py::arg("partial_out"), py::arg("partial_lse"),
        py::arg("attn_sink"), py::arg("combine"), py::arg("payload"), py::arg("out_dtype"), py::arg("out"),
        py::arg("timeout"), py::arg("plan"), py::arg("threads"));
}

}  // namespace sparsespan::bindings
