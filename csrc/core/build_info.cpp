#include "core/build_info.h"

#include "core/isa.h"
#include "core/parallel.h"

namespace sparsespan {

std::vector<std::pair<std::string, std::string>> build_info() {
  std::vector<std::pair<std::string, std::string>> info;
  info.emplace_back("version", SPARSESPAN_VERSION);
  info.emplace_back("compiler", SPARSESPAN_COMPILER);
  info.emplace_back("build_type", SPARSESPAN_BUILD_TYPE);
  std::string built;
  std::string refused;
  for (int i = 0; i < kIsaCount; ++i) {
    const auto isa = static_cast<Isa>(i);
    const std::string why = isa_refusal(isa);
    auto& list = why.empty() ? built : refused;
    if (!list.empty()) list += why.empty() ? ", " : "; ";
    list += std::string(name_of(isa)) + (why.empty() ? "" : ": " + why);
  }
  info.emplace_back("isa_available", built);
  info.emplace_back("isa_refused", refused);
  info.emplace_back("isa_cap", std::string(name_of(max_isa())));
  const bool emulated = active_isa() == Isa::amx && amx_emulated();
  info.emplace_back("isa", std::string(name_of(active_isa())) + (emulated ? " (emulated: slow, for tests)" : ""));
  info.emplace_back("threads", std::to_string(num_threads()));
  info.emplace_back("thread_runtime", thread_runtime());
  return info;
}

}  // namespace sparsespan
