// The peer of topk: std::nth_element on indices, as a C++ developer would write it.

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

extern "C" void nth_element_topk(const float* scores, std::int32_t n, std::int32_t k, std::int32_t* out) {
  std::vector<std::int32_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::nth_element(order.begin(), order.begin() + k, order.end(),
                   [scores](std::int32_t a, std::int32_t b) { return scores[a] > scores[b]; });
  std::copy_n(order.begin(), k, out);
}
