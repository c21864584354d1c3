#include "core/isa.h"

#include <atomic>
#include <cstdlib>

#include "core/check.h"
#include "core/op_scope.h"

namespace sparsespan {

namespace {

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
  refuse_value(op, argument, "is \"", text, "\", needs generic, avx2, avx512, avx512_bf16 or amx");
}

Isa active_isa() {
  if (const auto held = isa_of_op()) return *held;
  // 0: not asked yet, 1: refused, 2: offered. A level is asked for only when the cap reaches it.
  static std::array<std::atomic<int>, kIsaCount> answers{};
  for (int i = cap().load(); i > 0; --i) {
    int answer = answers[i].load();
    if (answer == 0) {
      answer = isa_refusal(static_cast<Isa>(i)).empty() ? 2 : 1;
      answers[i].store(answer);
    }
    if (answer == 2) return static_cast<Isa>(i);
  }
  return Isa::generic;
}

void set_max_isa(Isa isa) { cap().store(static_cast<int>(isa)); }

Isa max_isa() { return static_cast<Isa>(cap().load()); }

}  // namespace sparsespan
