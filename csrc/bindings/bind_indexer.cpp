#include "bindings/arrays.h"
#include "indexer/mqa_logits.h"
#include "indexer/paged_mqa_logits.h"
#include "indexer/select.h"
#include "indexer/slots.h"
#include "indexer/topk.h"

namespace sparsespan::bindings {

namespace {

// A new [rows, columns] array unless `out` is given; sizes come from users, so their product is checked first.
py::object matrix_or_out(std::string_view op, const py::object& out, DType dtype, std::int64_t rows,
                         std::int64_t columns) {
  if (!out.is_none() || columns < 0) return out;  // the core refuses a negative count by its own name
  checked_product(op, "out", checked_product(op, "out", rows, columns), size_of(dtype));
  return empty(dtype, {rows, columns});
}

// Whether `text` is the second of the two words.
bool is_second(std::string_view op, std::string_view argument, const std::string& text, std::string_view first,
               std::string_view second) {
  if (text != first && text != second) {
    refuse_value(op, argument, "is \"", text, "\", needs \"", first, "\" or \"", second, "\"");
  }
  return text == second;
}

indexer::NanRule parse_nan(std::string_view op, const std::string& text) {
  return is_second(op, "nan", text, "raise", "lowest") ? indexer::NanRule::lowest : indexer::NanRule::raise;
}

py::object bind_mqa_logits(const py::object& q, const py::object& k, const py::object& weights, const py::object& ks,
                           const py::object& ke, const py::object& k_scale, bool clean_logits,
                           std::int64_t max_seqlen_k, const py::object& out, int threads, const std::string& validate) {
  constexpr std::string_view op = "mqa_logits";
  MqaLogitsParams p;
  p.q = view(op, "q", q);
  p.k = view(op, "k", k);
  p.weights = view(op, "weights", weights);
  p.ks = view(op, "ks", ks);
  p.ke = view(op, "ke", ke);
  p.k_scale = view(op, "k_scale", k_scale);
  p.clean_logits = clean_logits;
  p.max_seqlen_k = max_seqlen_k;
  p.validate = parse_validate(op, validate);
  p.threads = threads;
  const auto result =
      matrix_or_out(op, out, DType::float32, p.q.shape[0], max_seqlen_k > 0 ? max_seqlen_k : p.k.shape[0]);
  p.out = view(op, "out", result);
  without_gil([&] { mqa_logits(p); });
  return result;
}

py::object bind_topk(const py::object& scores, std::int64_t k, const py::object& lengths, const py::object& row_starts,
                     const std::string& base, const std::string& nan, const std::string& order, const py::object& out,
                     int threads, const std::string& validate) {
  constexpr std::string_view op = "topk";
  TopkParams p;
  p.scores = view(op, "scores", scores);
  p.k = k;
  p.lengths = view(op, "lengths", lengths);
  p.row_starts = view(op, "row_starts", row_starts);
  p.from_row_start = is_second(op, "base", base, "packed", "row");
  p.by_score = is_second(op, "order", order, "index", "score");
  p.nan = parse_nan(op, nan);
  p.validate = parse_validate(op, validate);
  p.threads = threads;
  const auto result = matrix_or_out(op, out, DType::int32, p.scores.shape[0], k);
  p.out = view(op, "out", result);
  without_gil([&] { topk(p); });
  return result;
}

py::object bind_select(const py::object& q, const py::object& k, const py::object& weights, const py::object& ks,
                       const py::object& ke, const py::object& k_scale, std::int64_t topk, const std::string& nan,
                       const py::object& out, int threads, const std::string& validate) {
  constexpr std::string_view op = "select";
  SelectParams p;
  p.q = view(op, "q", q);
  p.k = view(op, "k", k);
  p.weights = view(op, "weights", weights);
  p.ks = view(op, "ks", ks);
  p.ke = view(op, "ke", ke);
  p.k_scale = view(op, "k_scale", k_scale);
  p.topk = topk;
  p.nan = parse_nan(op, nan);
  p.validate = parse_validate(op, validate);
  p.threads = threads;
  const auto result = matrix_or_out(op, out, DType::int32, p.q.shape[0], topk);
  p.out = view(op, "out", result);
  without_gil([&] { select(p); });
  return result;
}

// What the two paged ops share.
template <class Params>
std::int64_t set_paged(std::string_view op, Params& p, const py::object& q, const py::object& kv_cache,
                       const py::object& weights, const py::object& context_lens, const py::object& block_table) {
  p.q = view(op, "q", q);
  p.kv_cache = view(op, "kv_cache", kv_cache);
  p.weights = view(op, "weights", weights);
  p.context_lens = view(op, "context_lens", context_lens);
  p.block_table = view(op, "block_table", block_table);
  return p.q.rank == 4 ? checked_product(op, "q", p.q.shape[0], p.q.shape[1]) : p.q.shape[0];
}

py::object bind_paged_mqa_logits(const py::object& q, const py::object& kv_cache, const py::object& weights,
                                 const py::object& context_lens, const py::object& block_table, std::int64_t page_size,
                                 std::int64_t max_context_len, const std::string& layout, bool clean_logits,
                                 const py::object& out, int threads, const std::string& validate) {
  constexpr std::string_view op = "paged_mqa_logits";
  PagedMqaLogitsParams p;
  const std::int64_t rows = set_paged(op, p, q, kv_cache, weights, context_lens, block_table);
  p.page_size = page_size;
  p.max_context_len = max_context_len;
  p.layout = layout;
  p.clean_logits = clean_logits;
  p.validate = parse_validate(op, validate);
  p.threads = threads;
  const auto result = matrix_or_out(op, out, DType::float32, rows, max_context_len);
  p.out = view(op, "out", result);
  without_gil([&] { paged_mqa_logits(p); });
  return result;
}

py::object bind_paged_select(const py::object& q, const py::object& kv_cache, const py::object& weights,
                             const py::object& context_lens, const py::object& block_table, std::int64_t page_size,
                             std::int64_t topk, const std::string& layout, const std::string& nan,
                             const py::object& out, int threads, const std::string& validate) {
  constexpr std::string_view op = "paged_select";
  PagedSelectParams p;
  const std::int64_t rows = set_paged(op, p, q, kv_cache, weights, context_lens, block_table);
  p.page_size = page_size;
  p.topk = topk;
  p.layout = layout;
  p.nan = parse_nan(op, nan);
  p.validate = parse_validate(op, validate);
  p.threads = threads;
  const auto result = matrix_or_out(op, out, DType::int32, rows, topk);
  p.out = view(op, "out", result);
  without_gil([&] { paged_select(p); });
  return result;
}

py::object bind_to_slots(const py::object& indices, const py::object& row_to_request, const py::object& block_table,
                         std::int64_t page_size, const py::object& ks, const py::object& out, int threads,
                         const std::string& validate) {
  constexpr std::string_view op = "to_slots";
  ToSlotsParams p;
  p.indices = view(op, "indices", indices);
  p.row_to_request = view(op, "row_to_request", row_to_request);
  p.block_table = view(op, "block_table", block_table);
  p.ks = view(op, "ks", ks);
  p.page_size = page_size;
  p.validate = parse_validate(op, validate);
  p.threads = threads;
  const auto result = matrix_or_out(op, out, DType::int32, p.indices.shape[0], p.indices.shape[1]);
  p.out = view(op, "out", result);
  without_gil([&] { to_slots(p); });
  return result;
}

}  // namespace

void register_indexer(py::module_& parent) {
  auto m = parent.def_submodule("indexer");
  m.def("mqa_logits", &bind_mqa_logits, py::arg("q"), py::arg("k"), py::arg("weights"), py::arg("ks"), py::arg("ke"),
        py::arg("k_scale") = py::none(), py::arg("clean_logits").noconvert() = true, py::arg("max_seqlen_k") = 0,
        py::arg("out") = py::none(), py::arg("threads") = 0, py::arg("validate") = "full");
  m.def("topk", &bind_topk, py::arg("scores"), py::arg("k"), py::arg("lengths") = py::none(),
        py::arg("row_starts") = py::none(), py::arg("base") = "packed", py::arg("nan") = "raise",
        py::arg("order") = "index", py::arg("out") = py::none(), py::arg("threads") = 0, py::arg("validate") = "full");
  m.def("select", &bind_select, py::arg("q"), py::arg("k"), py::arg("weights"), py::arg("ks"), py::arg("ke"),
        py::arg("k_scale") = py::none(), py::arg("topk") = 2048, py::arg("nan") = "raise", py::arg("out") = py::none(),
        py::arg("threads") = 0, py::arg("validate") = "full");
  m.def("paged_mqa_logits", &bind_paged_mqa_logits, py::arg("q"), py::arg("kv_cache"), py::arg("weights"),
        py::arg("context_lens"), py::arg("block_table"), py::arg("page_size"), py::arg("max_context_len"),
        py::arg("layout") = "index_132", py::arg("clean_logits").noconvert() = true, py::arg("out") = py::none(),
        py::arg("threads") = 0, py::arg("validate") = "full");
  m.def("paged_select", &bind_paged_select, py::arg("q"), py::arg("kv_cache"), py::arg("weights"),
        py::arg("context_lens"), py::arg("block_table"), py::arg("page_size"), py::arg("topk") = 2048,
        py::arg("layout") = "index_132", py::arg("nan") = "raise", py::arg("out") = py::none(), py::arg("threads") = 0,
        py::arg("validate") = "full");
  m.def("to_slots", &bind_to_slots, py::arg("indices"), py::arg("row_to_request"), py::arg("block_table"),
        py::arg("page_size"), py::arg("ks") = py::none(), py::arg("out") = py::none(), py::arg("threads") = 0,
        py::arg("validate") = "full");
}

}  // namespace sparsespan::bindings
