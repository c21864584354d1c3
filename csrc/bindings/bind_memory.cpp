#include <memory>

#include "bindings/arrays.h"
#include "core/check.h"
#include "core/memory.h"

namespace sparsespan::bindings {

namespace {

// uint8 [bytes] over huge pages; the memory goes back with the last array that looks at it.
py::array empty_pool(std::int64_t bytes, int threads) {
  if (bytes < 0) refuse_value("empty_kv_pool", "pages", "asks for ", bytes, " bytes, needs at least 0");
  std::unique_ptr<HugeMemory> memory;
  without_gil([&] { memory = std::make_unique<HugeMemory>(bytes, threads); });
  std::byte* data = memory->data();
  const py::capsule owner(memory.release(), [](void* p) { delete static_cast<HugeMemory*>(p); });
  return py::array(py::dtype::of<std::uint8_t>(), {bytes}, {1}, data, owner);
}

}  // namespace

void register_memory(py::module_& m) {
  m.def("empty_kv_pool", &empty_pool, py::arg("bytes"), py::arg("threads") = 0);
  m.def("last_level_cache_bytes", &last_level_cache_bytes);
}

}  // namespace sparsespan::bindings
