#include "bindings/arrays.h"
#include "indexer/mqa_logits.h"

namespace sparsespan::bindings {

namespace {

// A new [rows, columns] array unless `out` is given; sizes come from users, so their product is checked first.
py::object matrix_or_out(std::string_view op, const py::object& out, DType dtype, std::int64_t rows,
                         std::int64_t columns) {
  if (!out.is_none()) return out;
  checked_product(op, "out", checked_product(op, "out", rows, columns), size_of(dtype));
  return empty(dtype, {rows, columns});
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

}  // namespace

void register_indexer(py::module_& parent) {
  auto m = parent.def_submodule("indexer");
  m.def("mqa_logits", &bind_mqa_logits, py::arg("q"), py::arg("k"), py::arg("weights"), py::arg("ks"), py::arg("ke"),
        py::arg("k_scale") = py::none(), py::arg("clean_logits") = true, py::arg("max_seqlen_k") = 0,
        py::arg("out") = py::none(), py::arg("threads") = 0, py::arg("validate") = "full");
}

}  // namespace sparsespan::bindings
