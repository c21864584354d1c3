#include <pybind11/stl.h>

#include <optional>
#include <vector>

#include "bindings/arrays.h"
#include "quant/act_quant.h"
#include "quant/cache_read.h"
#include "quant/cache_write.h"
#include "quant/layout.h"

namespace sparsespan::bindings {

namespace {

using Shape = std::vector<py::ssize_t>;

Shape shape_of(const py::object& object) {
  const auto array = py::reinterpret_borrow<py::array>(object);
  return Shape(array.shape(), array.shape() + array.ndim());
}

py::object empty_of(DType dtype, const Shape& shape) { return py::array(numpy_dtype(dtype), shape); }

// out=(a, b): None, or exactly two arrays (or None for what the op does not give).
std::pair<py::object, py::object> pair_of(std::string_view op, const py::object& out) {
  if (out.is_none()) return {py::none(), py::none()};
  if (!py::isinstance<py::tuple>(out) || py::len(out) != 2) refuse_type(op, "out", "needs a tuple of two arrays");
  const auto both = py::reinterpret_borrow<py::tuple>(out);
  return {both[0], both[1]};
}

ScaleRule rule_of(std::string_view op, const std::optional<std::string>& scale_fmt) {
  return scale_fmt ? parse_scale_fmt(op, "scale_fmt", *scale_fmt) : ScaleRule::official_f32;
}

py::tuple bind_act_quant(const py::object& x, std::int64_t block_size, const std::optional<std::string>& scale_fmt,
                         const py::object& out, int threads, const std::string& validate) {
  ActQuantParams p;
  auto [y, scale] = pair_of("act_quant", out);
  p.x = rows_view("act_quant", "x", x);
  p.block_size = block_size;
  p.rule = rule_of("act_quant", scale_fmt);
  p.validate = parse_validate("act_quant", validate);
  p.threads = threads;
  if (y.is_none() && p.x) y = empty_like(x, DType::float8_e4m3fn);
  if (scale.is_none() && p.x) {
    Shape shape = shape_of(x);
    shape.back() = block_size > 0 ? shape.back() / block_size : 0;
    scale = empty_of(DType::float32, shape);
  }
  require_leading_axes("act_quant", "out[0]", y, x);
  require_leading_axes("act_quant", "out[1]", scale, x);
  p.y = rows_view("act_quant", "out[0]", y);
  p.scale = rows_view("act_quant", "out[1]", scale);
  without_gil([&] { act_quant(p); });
  return py::make_tuple(y, scale);
}

py::object bind_weight_dequant(const py::object& w, const py::object& scale_inv, std::int64_t block, bool to_float32,
                               const py::object& out, int threads, const std::string& validate) {
  WeightDequantParams p;
  p.w = view("weight_dequant", "w", w);
  p.scale = view("weight_dequant", "scale_inv", scale_inv);
  p.block = block;
  p.validate = parse_validate("weight_dequant", validate);
  p.threads = threads;
  const DType dtype = to_float32 ? DType::float32 : DType::bfloat16;
  const py::object result = out_or_empty_like(out, w, p.w ? dtype : DType::none);
  p.out = view("weight_dequant", "out", result);
  without_gil([&] { weight_dequant(p); });
  return result;
}

template <class Params>
void set_cache(Params& p, std::string_view op, const py::object& cache, const std::string& layout,
               std::int64_t page_size, int threads, const std::string& validate) {
  p.cache = view(op, "cache", cache);
  p.layout = parse_kv_layout(op, "layout", layout);
  p.page_size = page_size;
  p.threads = threads;
  p.validate = parse_validate(op, validate);
}

void bind_concat_and_cache_mla(const py::object& c_kv, const py::object& k_pe, const py::object& cache,
                               const py::object& slot_mapping, const std::string& layout, std::int64_t page_size,
                               const std::string& scale_rule, int threads, const std::string& validate) {
  constexpr std::string_view kOp = "concat_and_cache_mla";
  ConcatAndCacheMlaParams p;
  set_cache(p, kOp, cache, layout, page_size, threads, validate);
  p.c_kv = rows_view(kOp, "c_kv", c_kv);
  p.k_pe = rows_view(kOp, "k_pe", k_pe);
  p.slot_mapping = view(kOp, "slot_mapping", slot_mapping);
  p.rule = parse_scale_rule(kOp, "scale_rule", scale_rule);
  without_gil([&] { concat_and_cache_mla(p); });
}

void bind_indexer_k(const py::object& k, const py::object& cache, const py::object& slot_mapping,
                    const std::string& layout, std::int64_t page_size, const std::optional<std::string>& scale_fmt,
                    int threads, const std::string& validate) {
  constexpr std::string_view kOp = "indexer_k_quant_and_cache";
  IndexerKQuantAndCacheParams p;
  set_cache(p, kOp, cache, layout, page_size, threads, validate);
  p.k = rows_view(kOp, "k", k);
  p.slot_mapping = view(kOp, "slot_mapping", slot_mapping);
  p.rule = rule_of(kOp, scale_fmt);
  without_gil([&] { indexer_k_quant_and_cache(p); });
}

py::object bind_read_kv(const py::object& cache, const py::object& slots, const std::string& layout,
                        std::int64_t page_size, const py::object& out, int threads, const std::string& validate) {
  ReadKvParams p;
  set_cache(p, "read_kv", cache, layout, page_size, threads, validate);
  p.slots = view("read_kv", "slots", slots);
  if (p.slots.rank != 1) p.slots = rows_view("read_kv", "slots", slots);
  py::object result = out;
  if (out.is_none() && p.slots) {
    Shape shape = shape_of(slots);
    shape.push_back(layout_info(p.layout).dim);
    result = empty_of(layout_info(p.layout).decoded, shape);
  }
  require_leading_axes("read_kv", "out", result, slots, 0);
  p.out = rows_view("read_kv", "out", result);
  without_gil([&] { read_kv(p); });
  return result;
}

py::tuple bind_gather(const py::object& cache, const py::object& block_table, const py::object& cu_seq_lens,
                      const std::string& layout, std::int64_t page_size, const py::object& out, int threads,
                      const std::string& validate) {
  GatherIndexerKParams p;
  auto [k, scale] = pair_of("gather_indexer_k", out);
  set_cache(p, "gather_indexer_k", cache, layout, page_size, threads, validate);
  p.block_table = view("gather_indexer_k", "block_table", block_table);
  p.cu_seq_lens = view("gather_indexer_k", "cu_seq_lens", cu_seq_lens);
  const std::int64_t rows = gather_indexer_k_rows(p);
  const KvLayoutInfo& info = layout_info(p.layout);
  k = out_or_empty(k, info.fields[0].dtype, {rows, kIndexDim});
  if (info.scale_field() != nullptr) scale = out_or_empty(scale, DType::float32, {rows});
  p.k = view("gather_indexer_k", "out[0]", k);
  p.scale = view("gather_indexer_k", "out[1]", scale);
  without_gil([&] { gather_indexer_k(p); });
  return py::make_tuple(k, scale);
}

py::object bind_convert_kv(const py::object& cache, const std::string& src, const std::string& dst,
                           const std::string& scale_rule, const py::object& out, int threads) {
  ConvertKvParams p;
  p.cache = view("convert_kv", "cache", cache);
  p.from = parse_kv_layout("convert_kv", "src", src);
  p.to = parse_kv_layout("convert_kv", "dst", dst);
  p.rule = parse_scale_rule("convert_kv", "scale_rule", scale_rule);
  p.threads = threads;
  const PagedCache from = convert_kv_source(p);
  const KvLayoutInfo& to = layout_info(p.to);
  const py::object result = out_or_empty(out, to.storage, {from.pages, from.page_size, to.width});
  p.out = view("convert_kv", "out", result);
  without_gil([&] { convert_kv(p); });
  return result;
}

// (name, dtype, width, dim, decoded, bytes_per_token, ((name, dtype, count, offset, page_tail), ...))
py::tuple kv_layout_tuple(const std::string& name) {
  const KvLayoutInfo& info = layout_info(parse_kv_layout("kv_layout", "name", name));
  py::list fields;
  for (int i = 0; i < info.num_fields; ++i) {
    const KvField& f = info.fields[i];
    fields.append(py::make_tuple(f.name, name_of(f.dtype), f.count, f.offset, f.page_tail));
  }
  return py::make_tuple(info.name, name_of(info.storage), info.width, info.dim, name_of(info.decoded),
                        info.bytes_per_token(), py::tuple(fields));
}

py::tuple kv_layout_names() {
  py::list names;
  for (const auto& info : detail::kKvLayouts) names.append(info.name);
  return py::tuple(names);
}

}  // namespace

void register_quant(py::module_& parent) {
  auto m = parent.def_submodule("quant");
  m.def("act_quant", &bind_act_quant, py::arg("x"), py::arg("block_size"), py::arg("scale_fmt"), py::arg("out"),
        py::arg("threads"), py::arg("validate"));
  m.def("weight_dequant", &bind_weight_dequant, py::arg("w"), py::arg("scale_inv"), py::arg("block"),
        py::arg("to_float32"), py::arg("out"), py::arg("threads"), py::arg("validate"));
  m.def("concat_and_cache_mla", &bind_concat_and_cache_mla, py::arg("c_kv"), py::arg("k_pe"), py::arg("cache"),
        py::arg("slot_mapping"), py::arg("layout"), py::arg("page_size"), py::arg("scale_rule"), py::arg("threads"),
        py::arg("validate"));
  m.def("indexer_k_quant_and_cache", &bind_indexer_k, py::arg("k"), py::arg("cache"), py::arg("slot_mapping"),
        py::arg("layout"), py::arg("page_size"), py::arg("scale_fmt"), py::arg("threads"), py::arg("validate"));
  m.def("read_kv", &bind_read_kv, py::arg("cache"), py::arg("slots"), py::arg("layout"), py::arg("page_size"),
        py::arg("out"), py::arg("threads"), py::arg("validate"));
  m.def("gather_indexer_k", &bind_gather, py::arg("cache"), py::arg("block_table"), py::arg("cu_seq_lens"),
        py::arg("layout"), py::arg("page_size"), py::arg("out"), py::arg("threads"), py::arg("validate"));
  m.def("convert_kv", &bind_convert_kv, py::arg("cache"), py::arg("src"), py::arg("dst"), py::arg("scale_rule"),
        py::arg("out"), py::arg("threads"));
  m.def("kv_layout", &kv_layout_tuple, py::arg("name"));
  m.def("kv_layout_names", &kv_layout_names);
}

}  // namespace sparsespan::bindings
