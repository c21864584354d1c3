#pragma once

// What stays the same on a thread while an op runs on it, whatever the caller or another thread sets meanwhile.

#include <cfenv>
#include <optional>

#include "core/isa.h"

namespace sparsespan {

// One at the entry of an op that looks for kernels more than once and, by parallel_for, around the share of each
// thread. Inside, the ISA level is the one at the start, and floats are as C++ starts with them: rounded to nearest,
// subnormals kept. A caller's mode holds for the caller's thread only: without this a row's bits would depend on who
// computes it (torch.set_flush_denormal is such a mode). Inside another scope it does nothing. At the end the caller's
// mode comes back, its exception flags included.
class OpScope {
 public:
  explicit OpScope(Isa isa = active_isa());
  ~OpScope();
  OpScope(const OpScope&) = delete;
  OpScope& operator=(const OpScope&) = delete;

 private:
  bool outermost_;
  std::fenv_t saved_{};
};

// The level of the op that runs on this thread, if one does.
std::optional<Isa> isa_of_op();

}  // namespace sparsespan
