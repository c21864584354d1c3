#include "attention/sparse_mla.h"
#include "bindings/arrays.h"

namespace sparsespan::bindings {

namespace {

// `out` as the user gave it: None, an array, or a tuple whose entries may be None.
py::object entry(const py::object& out, std::size_t i, std::string_view op) {
  if (!py::isinstance<py::tuple>(out)) return i == 0 ? out : py::none();
  const auto tuple = py::reinterpret_borrow<py::tuple>(out);
  if (tuple.size() > 3) refuse_value(op, "out", "has ", tuple.size(), " entries, needs (out, lse, max_logits)");
  return i < tuple.size() ? py::object(tuple[i]) : py::none();
}

// The dtype of `out`: an array's own, else out_dtype, else q's.
DType result_dtype(std::string_view op, const std::string& out_dtype, DType q) {
  if (out_dtype.empty()) return q;
  if (out_dtype == name_of(DType::float32)) return DType::float32;
  if (out_dtype == name_of(DType::bfloat16)) return DType::bfloat16;
  refuse_value(op, "out_dtype", "is \"", out_dtype, "\", needs \"float32\" or \"bfloat16\"");
}

struct Results {
  py::object out, lse, max_logits;
  Results(std::string_view op, const py::object& given, const std::string& out_dtype, const Tensor& q,
          std::int64_t d_v) {
    const DType dtype = result_dtype(op, out_dtype, q.dtype);
    const std::int64_t rows = q.rank == 3 ? q.shape[0] : 0;
    const std::int64_t heads = q.rank == 3 ? q.shape[1] : 0;
    out = out_or_empty(entry(given, 0, op), dtype, {rows, heads, std::max<std::int64_t>(d_v, 0)});
    lse = out_or_empty(entry(given, 1, op), DType::float32, {rows, heads});
    max_logits = out_or_empty(entry(given, 2, op), DType::float32, {rows, heads});
  }
};

py::tuple bind_sparse_mla(const py::object& q, const py::object& q_pe, const py::object& kv, const py::object& indices,
                          float sm_scale, std::int64_t d_v, const py::object& topk_length, const py::object& attn_sink,
                          const std::string& layout, std::int64_t page_size, const py::object& lane_of,
                          const std::string& out_dtype, const py::object& out, const std::string& validate,
                          int threads) {
  constexpr std::string_view kOp = "sparse_mla";
  SparseMlaParams p{.q = view(kOp, "q", q), .q_pe = view(kOp, "q[1]", q_pe), .kv = view(kOp, "kv", kv)};
  if (!layout.empty()) p.layout = parse_kv_layout(kOp, "layout", layout);
  p.indices = view(kOp, "indices", indices);
  p.topk_length = view(kOp, "topk_length", topk_length);
  p.attn_sink = view(kOp, "attn_sink", attn_sink);
  p.lane_of = view(kOp, "lane_of", lane_of);
  p.page_size = page_size, p.sm_scale = sm_scale, p.d_v = d_v, p.threads = threads;
  p.validate = parse_validate(kOp, validate);
  const Results results(kOp, out, out_dtype, p.q, d_v);
  p.out = view(kOp, "out", results.out);
  p.lse = view(kOp, "lse", results.lse);
  p.max_logits = view(kOp, "max_logits", results.max_logits);
  without_gil([&] { sparse_mla(p); });
  return py::make_tuple(results.out, results.lse, results.max_logits);
}

}  // namespace

void register_attention(py::module_& parent) {
  auto m = parent.def_submodule("attention");
  m.def("sparse_mla", &bind_sparse_mla, py::arg("q"), py::arg("q_pe"), py::arg("kv"), py::arg("indices"),
        py::arg("sm_scale"), py::arg("d_v"), py::arg("topk_length"), py::arg("attn_sink"), py::arg("layout"),
        py::arg("page_size"), py::arg("lane_of"), py::arg("out_dtype"), py::arg("out"), py::arg("validate"),
        py::arg("threads"));
}

}  // namespace sparsespan::bindings
