#include "attention/dense_mla.h"
#include "attention/merge_states.h"
#include "attention/mha.h"
#include "attention/sparse_mla.h"
#include "bindings/arrays.h"

namespace sparsespan::bindings {

namespace {

// `out` as the user gave it: None, an array, or a tuple whose entries may be None.
py::object entry(const py::object& out, std::size_t i, std::size_t limit, std::string_view op) {
  if (!py::isinstance<py::tuple>(out)) return i == 0 ? out : py::none();
  const auto tuple = py::reinterpret_borrow<py::tuple>(out);
  if (tuple.size() > limit) {
    refuse_value(op, "out", "has ", tuple.size(), " entries, needs ",
                 limit == 3 ? "(out, lse, max_logits)" : "(out, lse)");
  }
  return i < tuple.size() ? py::object(tuple[i]) : py::none();
}

// The dtype of `out`: an array's own, else out_dtype, else q's.
DType result_dtype(std::string_view op, const std::string& out_dtype, DType q) {
  if (out_dtype.empty()) return q;
  if (out_dtype == name_of(DType::float32)) return DType::float32;
  if (out_dtype == name_of(DType::bfloat16)) return DType::bfloat16;
  refuse_value(op, "out_dtype", "is \"", out_dtype, "\", needs \"float32\" or \"bfloat16\"");
}

// The outputs of one call: given or new, and their views.
struct Results {
  py::object out, lse, max_logits = py::none();
  Tensor out_view, lse_view, max_view;

  // rows, heads: from an array whose rank the core has yet to check; `axis` is where the rows are.
  Results(std::string_view op, const py::object& given, const std::string& out_dtype, const Tensor& q, std::int64_t d_v,
          bool with_max = false, int axis = 0) {
    const std::size_t limit = with_max ? 3 : 2;
    const bool fits = q.rank == axis + 3;
    const std::int64_t rows = fits ? q.shape[axis] : 0;
    const std::int64_t heads = fits ? q.shape[axis + 1] : 0;
    const DType dtype = result_dtype(op, out_dtype, q.dtype);
    out = out_or_empty(entry(given, 0, limit, op), dtype, {rows, heads, std::max<std::int64_t>(d_v, 0)});
    lse = out_or_empty(entry(given, 1, limit, op), DType::float32, {rows, heads});
    out_view = view(op, "out", out);
    lse_view = view(op, "lse", lse);
    if (!with_max) return;
    max_logits = out_or_empty(entry(given, 2, limit, op), DType::float32, {rows, heads});
    max_view = view(op, "max_logits", max_logits);
  }
  py::tuple pair() const { return py::make_tuple(out, lse); }
};

std::int64_t last_axis(const Tensor& t) { return t.rank > 0 ? t.shape[t.rank - 1] : 0; }

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
  const Results results(kOp, out, out_dtype, p.q, d_v, true);
  p.out = results.out_view, p.lse = results.lse_view, p.max_logits = results.max_view;
  without_gil([&] { sparse_mla(p); });
  return py::make_tuple(results.out, results.lse, results.max_logits);
}

py::tuple bind_dense_mla(const py::object& q, const py::object& q_pe, const py::object& kv_cache,
                         const py::object& row_to_request, const py::object& context_lens,
                         const py::object& block_table, std::int64_t page_size, float sm_scale,
                         const std::string& layout, const std::string& out_dtype, const py::object& out,
                         const std::string& validate, int threads) {
  constexpr std::string_view kOp = "dense_mla";
  DenseMlaParams p{
      .q = view(kOp, "q", q), .q_pe = view(kOp, "q[1]", q_pe), .kv_cache = view(kOp, "kv_cache", kv_cache)};
  p.row_to_request = view(kOp, "row_to_request", row_to_request);
  p.context_lens = view(kOp, "context_lens", context_lens);
  p.block_table = view(kOp, "block_table", block_table);
  p.layout = parse_kv_layout(kOp, "layout", layout);
  p.page_size = page_size, p.sm_scale = sm_scale, p.threads = threads;
  p.validate = parse_validate(kOp, validate);
  const Results results(kOp, out, out_dtype, p.q, kLatentDim);
  p.out = results.out_view, p.lse = results.lse_view;
  without_gil([&] { dense_mla(p); });
  return results.pair();
}

py::tuple bind_mha(const py::object& q, const py::object& k, const py::object& v, const py::object& cu_q,
                   const py::object& cu_k, float sm_scale, bool causal, const std::string& out_dtype,
                   const py::object& out, int threads) {
  constexpr std::string_view kOp = "mha";
  MhaParams p{.q = view(kOp, "q", q), .k = view(kOp, "k", k), .v = view(kOp, "v", v)};
  p.cu_q = view(kOp, "cu_q", cu_q);
  p.cu_k = view(kOp, "cu_k", cu_k);
  p.sm_scale = sm_scale, p.causal = causal, p.threads = threads;
  const Results results(kOp, out, out_dtype, p.q, last_axis(p.v));
  p.out = results.out_view, p.lse = results.lse_view;
  without_gil([&] { mha(p); });
  return results.pair();
}

py::tuple bind_sparse_mha(const py::object& q, const py::object& k, const py::object& v, const py::object& indices,
                          float sm_scale, const py::object& topk_length, const std::string& out_dtype,
                          const py::object& out, const std::string& validate, int threads) {
  constexpr std::string_view kOp = "sparse_mha";
  SparseMhaParams p{.q = view(kOp, "q", q), .k = view(kOp, "k", k), .v = view(kOp, "v", v)};
  p.indices = view(kOp, "indices", indices);
  p.topk_length = view(kOp, "topk_length", topk_length);
  p.sm_scale = sm_scale, p.threads = threads;
  p.validate = parse_validate(kOp, validate);
  const Results results(kOp, out, out_dtype, p.q, last_axis(p.v));
  p.out = results.out_view, p.lse = results.lse_view;
  without_gil([&] { sparse_mha(p); });
  return results.pair();
}

py::tuple bind_merge_states(const py::object& outs, const py::object& lses, const py::object& attn_sink,
                            const std::string& out_dtype, const py::object& out, int threads) {
  constexpr std::string_view kOp = "merge_states";
  MergeStatesParams p{.outs = view(kOp, "outs", outs), .lses = view(kOp, "lses", lses)};
  p.attn_sink = view(kOp, "attn_sink", attn_sink);
  p.threads = threads;
  const Results results(kOp, out, out_dtype, p.outs, last_axis(p.outs), false, 1);
  p.out = results.out_view, p.lse = results.lse_view;
  without_gil([&] { merge_states(p); });
  return results.pair();
}

}  // namespace

void register_attention(py::module_& parent) {
  auto m = parent.def_submodule("attention");
  m.def("sparse_mla", &bind_sparse_mla, py::arg("q"), py::arg("q_pe"), py::arg("kv"), py::arg("indices"),
        py::arg("sm_scale"), py::arg("d_v"), py::arg("topk_length"), py::arg("attn_sink"), py::arg("layout"),
        py::arg("page_size"), py::arg("lane_of"), py::arg("out_dtype"), py::arg("out"), py::arg("validate"),
        py::arg("threads"));
  m.def("dense_mla", &bind_dense_mla, py::arg("q"), py::arg("q_pe"), py::arg("kv_cache"), py::arg("row_to_request"),
        py::arg("context_lens"), py::arg("block_table"), py::arg("page_size"), py::arg("sm_scale"), py::arg("layout"),
        py::arg("out_dtype"), py::arg("out"), py::arg("validate"), py::arg("threads"));
  m.def("mha", &bind_mha, py::arg("q"), py::arg("k"), py::arg("v"), py::arg("cu_q"), py::arg("cu_k"),
        py::arg("sm_scale"), py::arg("causal").noconvert(), py::arg("out_dtype"), py::arg("out"), py::arg("threads"));
  m.def("sparse_mha", &bind_sparse_mha, py::arg("q"), py::arg("k"), py::arg("v"), py::arg("indices"),
        py::arg("sm_scale"), py::arg("topk_length"), py::arg("out_dtype"), py::arg("out"), py::arg("validate"),
        py::arg("threads"));
  m.def("merge_states", &bind_merge_states, py::arg("outs"), py::arg("lses"), py::arg("attn_sink"),
        py::arg("out_dtype"), py::arg("out"), py::arg("threads"));
}

}  // namespace sparsespan::bindings
