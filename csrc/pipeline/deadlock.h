#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "pipeline/engine.h"

namespace sparsespan::pipeline {

struct Stuck {
  std::string words;  // empty: every rank came to its end
  std::int64_t rank = -1;
  std::int64_t step = -1;
};

// `at`: the step each rank stands at when nothing moves any more.
Stuck explain_deadlock(const Schedule& schedule, const Index& index, Transport transport,
                       const std::vector<std::int64_t>& at, const std::function<bool(const Need&)>& happened);

}  // namespace sparsespan::pipeline
