#include "core/openmp_runtime.h"

#include <dlfcn.h>
#include <link.h>

#include <array>
#include <mutex>
#include <string_view>

#include "core/parallel.h"

namespace sparsespan {

namespace {

std::string openmp_hint;  // guarded by the mutex of openmp_runtime()
std::mutex runtime_mutex;

struct Scan {
  std::string own;     // a renamed copy inside a wheel (libgomp-<hash>.so): whoever brought it uses it
  std::string system;  // plain libgomp.so.1, libomp, libiomp5
};

bool starts_with_any(std::string_view name, const std::array<std::string_view, 3>& stems) {
  for (auto stem : stems) {
    if (name.starts_with(stem)) return true;
  }
  return false;
}

int visit(dl_phdr_info* info, std::size_t, void* data) {
  auto& scan = *static_cast<Scan*>(data);
  const std::string_view path = info->dlpi_name == nullptr ? "" : info->dlpi_name;
  const std::string_view file = path.substr(path.rfind('/') + 1);
  if (file.starts_with("libgomp-")) {
    scan.own = path;
  } else if (starts_with_any(file, {"libgomp.so", "libomp.so", "libiomp5.so"})) {
    scan.system = path;
  }
  return 0;
}

// The first entry already tells how many libraries were ever loaded: cheap enough for every call.
unsigned long long libraries_loaded() {
  unsigned long long loaded = 0;
  dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void* data) {
        *static_cast<unsigned long long*>(data) = info->dlpi_adds;
        return 1;
      },
      &loaded);
  return loaded;
}

OpenMpRuntime open_library(const std::string& path, int flags) {
  if (path.empty()) return {};
  void* handle = dlopen(path.c_str(), flags);
  if (handle == nullptr) return {};
  OpenMpRuntime runtime;
  runtime.parallel = reinterpret_cast<OpenMpRuntime::Parallel>(dlsym(handle, "GOMP_parallel"));
  runtime.description = path;
  if (runtime.parallel == nullptr) runtime = {};
  return runtime;
}

OpenMpRuntime find(const Scan& scan) {
  for (const auto& path : {scan.own, scan.system}) {
    if (auto runtime = open_library(path, RTLD_NOW | RTLD_NOLOAD); runtime.parallel != nullptr) return runtime;
  }
  for (const auto& path : {openmp_hint, std::string("libgomp.so.1"), std::string("libomp.so.5")}) {
    if (auto runtime = open_library(path, RTLD_NOW | RTLD_LOCAL); runtime.parallel != nullptr) return runtime;
  }
  return {.parallel = nullptr, .description = "serial (no OpenMP runtime found; install libgomp1)"};
}

}  // namespace

void set_openmp_hint(std::string path) {
  const std::lock_guard lock(runtime_mutex);
  openmp_hint = std::move(path);
}

OpenMpRuntime openmp_runtime() {
  static unsigned long long seen = 0;
  static OpenMpRuntime runtime;
  const std::lock_guard lock(runtime_mutex);
  if (runtime.description.empty() || libraries_loaded() != seen) {
    Scan scan;
    dl_iterate_phdr(visit, &scan);
    runtime = find(scan);
    seen = libraries_loaded();  // opening a library is itself an addition
  }
  return runtime;
}

}  // namespace sparsespan
