#include <pybind11/stl.h>

#include "bindings/arrays.h"
#include "parallel/volume.h"

namespace sparsespan::bindings {

namespace {

template <class T>
T get(const py::dict& d, const char* key) {
  return d[key].cast<T>();
}

AttentionDims dims_of(const py::dict& d) {
  const auto n = [&](const char* key) { return get<std::int64_t>(d, key); };
  return {n("layers"),  n("index_layers"), n("hidden"), n("heads"),  n("q_lora"),
          n("kv_lora"), n("rope"),         n("nope"),   n("v_head"), n("topk")};
}

VolumeParams params_of(const std::string& scheme, const py::dict& model, const py::dict& d) {
  const auto n = [&](const char* key) { return get<std::int64_t>(d, key); };
  const auto text = [&](const char* key) { return get<std::string>(d, key); };
  const auto list = [&](const char* key) { return get<std::vector<std::int64_t>>(d, key); };
  return {scheme,
          dims_of(model),
          list("lengths"),
          list("contexts"),
          n("ranks"),
          n("tp"),
          n("kv_bytes"),
          n("index_bytes"),
          n("activation_bytes"),
          n("weight_bytes"),
          n("payload_bytes"),
          n("page_size"),
          n("interleave"),
          text("combine"),
          text("index_k"),
          text("o_proj"),
          text("restore"),
          get<bool>(d, "replicate_q"),
          get<bool>(d, "replicated_state"),
          n("rows"),
          list("last_rows")};
}

// [(what, primitive, group, times, chunk, received, sent, total, formula)]
py::list bind_volume(const std::string& scheme, const py::dict& model, const py::dict& options) {
  const VolumeParams p = params_of(scheme, model, options);
  std::vector<VolumeRow> rows;
  without_gil([&] { rows = volume(p); });
  py::list out;
  for (const VolumeRow& r : rows) {
    out.append(py::make_tuple(r.what, std::string(name_of(r.primitive)), r.group, r.times, r.chunk, r.received(),
                              r.sent(), r.total(), r.formula));
  }
  return out;
}

}  // namespace

void register_cp_volume(py::module_& parent) {
  auto m = parent.def_submodule("cp");
  m.def("volume", &bind_volume, py::arg("scheme"), py::arg("model"), py::arg("options"));
}

}  // namespace sparsespan::bindings
