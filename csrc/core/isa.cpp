#include "core/isa.h"

#include <atomic>
#include <cstdlib>

#include "core/check.h"

namespace sparsespan {

namespace {

#if defined(__x86_64__)
std::string avx2_refusal() {
#ifndef SPARSESPAN_HAVE_AVX2
  return "not built: the compiler has no AVX2";
#else
  __builtin_cpu_init();
  const bool offered =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  return offered ? "" : "the CPU lacks AVX2, FMA or F16C";
#endif
}

std::string avx512_refusal() {
#ifndef SPARSESPAN_HAVE_AVX512
  return "not built: the compiler has no AVX-512";
#else
  __builtin_cpu_init();
  // __builtin_cpu_supports also asks the operating system (XGETBV) for the wide registers.
  const bool offered = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                       __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                       __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  return offered ? "" : "the CPU lacks AVX-512 F, BW, VL, DQ, FMA or F16C";
#endif
}
#else
std::string avx2_refusal() { return "not an x86-64 CPU"; }
std::string avx512_refusal() { return "not an x86-64 CPU"; }
#endif

int cap_from_environment() {
  const char* text = std::getenv("SPARSESPAN_MAX_ISA");
  if (text == nullptr || *text == '\0') return kIsaCount - 1;
  return static_cast<int>(parse_isa("sparsespan", "SPARSESPAN_MAX_ISA", text));
}

std::atomic<int>& cap() {
  static std::atomic<int> value{cap_from_environment()};
  return value;
}

}  // namespace

std::string_view name_of(Isa isa) { return kIsaNames[static_cast<int>(isa)]; }

Isa parse_isa(std::string_view op, std::string_view argument, std::string_view text) {
  for (int i = 0; i < kIsaCount; ++i) {
    if (kIsaNames[i] == text) return static_cast<Isa>(i);
  }
  refuse_value(op, argument, "is \"", text, "\", needs generic, avx2, avx512 or amx");
}

std::string isa_refusal(Isa isa) {
  switch (isa) {
    case Isa::generic: return "";
    case Isa::avx512: return avx512_refusal();
    case Isa::avx2: return avx2_refusal();
    case Isa::amx: return "not built: this version has no kernels at this level";
  }
  return "unknown";
}

Isa active_isa() {
  static const auto offered = [] {
    std::array<bool, kIsaCount> can{};
    for (int i = 0; i < kIsaCount; ++i) can[i] = isa_refusal(static_cast<Isa>(i)).empty();
    return can;
  }();
  for (int i = cap().load(); i > 0; --i) {
    if (offered[i]) return static_cast<Isa>(i);
  }
  return Isa::generic;
}

void set_max_isa(Isa isa) { cap().store(static_cast<int>(isa)); }

Isa max_isa() { return static_cast<Isa>(cap().load()); }

}  // namespace sparsespan
