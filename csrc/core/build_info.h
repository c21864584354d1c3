#pragma once

#include <string>
#include <utility>
#include <vector>

namespace sparsespan {

// What this binary is and what it chose on this machine, as ordered (key, value) pairs.
std::vector<std::pair<std::string, std::string>> build_info();

}  // namespace sparsespan
