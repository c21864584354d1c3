#include "core/op_scope.h"

namespace sparsespan {

namespace {

thread_local std::optional<Isa> held;

}  // namespace

OpScope::OpScope(Isa isa) : outermost_(!held) {
  if (!outermost_) return;
  held = isa;
  std::fegetenv(&saved_);
  std::fesetenv(FE_DFL_ENV);
}

OpScope::~OpScope() {
  if (!outermost_) return;
  std::fesetenv(&saved_);
  held.reset();
}

std::optional<Isa> isa_of_op() { return held; }

}  // namespace sparsespan
