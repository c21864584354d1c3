#include "quant/rows.h"

#include <cmath>
#include <utility>
#include <vector>

#include "core/parallel.h"
#include "core/scratch.h"
#include "kernels/quant.h"

namespace sparsespan {

namespace {

constexpr std::int64_t kChunk = 512;

void require_finite_row(const QuantKernels& kernels, std::string_view op, std::string_view argument, const Tensor& x,
                        std::int64_t t) {
  const bool bfloat16 = x.dtype == DType::bfloat16;
  for (std::int64_t begin = 0; begin < x.shape[1]; begin += kChunk) {
    const std::int64_t n = std::min(kChunk, x.shape[1] - begin);
    if (kernels.amax_bits(element_at(x, t, begin), bfloat16, n) < 0x7F800000U) continue;
    float buffer[kChunk];
    const float* values = load_floats(x, t, begin, n, buffer);
    for (std::int64_t i = 0; i < n; ++i) {
      if (std::isfinite(values[i])) continue;
      refuse_value(op, argument, "has ", values[i], " in row ", t, ", column ", begin + i,
                   ", needs finite values: no scale follows from it");
    }
  }
}

void refuse_duplicates(std::string_view op, const IntView<1>& slots) {
  std::vector<std::pair<std::int64_t, std::int64_t>> taken;  // (slot, row)
  taken.reserve(static_cast<std::size_t>(slots.shape[0]));
  for (std::int64_t t = 0; t < slots.shape[0]; ++t) {
    if (slots(t) >= 0) taken.emplace_back(slots(t), t);
  }
  if (!std::is_sorted(taken.begin(), taken.end())) std::sort(taken.begin(), taken.end());
  const auto* first = static_cast<const std::pair<std::int64_t, std::int64_t>*>(nullptr);
  for (std::size_t i = 1; i < taken.size(); ++i) {  // of several: the one whose second row comes first
    if (taken[i].first != taken[i - 1].first) continue;
    if (first == nullptr || taken[i].second < first->second) first = &taken[i];
  }
  if (first == nullptr) return;
  refuse_value(op, "slot_mapping", "names slot ", first->first, " in rows ", (first - 1)->second, " and ",
               first->second, ", needs each slot once: which row would stay is not defined");
}

}  // namespace

void require_finite(std::string_view op, std::string_view argument, const Tensor& x, const Tensor& slot_mapping,
                    int threads) {
  const IntView<1> slots(slot_mapping);
  const std::int64_t rows = x.shape[0];
  const QuantKernels& kernels = quant_kernels();
  parallel_rows(rows, x.shape[1], threads, [&](std::int64_t t, int) {
    if (slot_mapping.present && slots(t) < 0) return;
    require_finite_row(kernels, op, argument, x, t);
  });
}

void require_slots(std::string_view op, const Tensor& slot_mapping, std::int64_t slots) {
  const IntView<1> view(slot_mapping);
  for (std::int64_t t = 0; t < view.shape[0]; ++t) {
    const std::int64_t slot = view(t);
    if (slot < -1 || slot >= slots) {
      refuse_index(op, "slot_mapping", "is ", slot, " in row ", t, ", needs -1 (skip the row) or a slot in [0, ", slots,
                   ")");
    }
  }
  refuse_duplicates(op, view);
}

}  // namespace sparsespan
