#include "quant/scale.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

namespace sparsespan {

namespace {

constexpr float kReciprocal448 = 0x1.24924ap-9F;  // float32(1/448), the official kernel's constant
constexpr float kFloor = 1e-4F;

}  // namespace

ScaleRule parse_scale_rule(std::string_view op, std::string_view argument, std::string_view text) {
  if (text == "official") return ScaleRule::official;
  if (text == "flashmla") return ScaleRule::flashmla;
  if (text == "sglang") return ScaleRule::sglang;
  if (text == "vllm") return ScaleRule::vllm;
  refuse_value(op, argument, "is \"", text, "\", needs \"official\", \"flashmla\", \"sglang\" or \"vllm\"");
}

ScaleRule parse_scale_fmt(std::string_view op, std::string_view argument, std::string_view text) {
  if (text == "ue8m0") return ScaleRule::official;
  refuse_value(op, argument, "is \"", text, "\", needs None (float32 scales) or \"ue8m0\" (powers of two)");
}

float ceil2(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  return std::bit_cast<float>((bits + 0x7FFFFFU) & 0x7F800000U);  // any mantissa carries into the exponent
}

float tile_scale(ScaleRule rule, float amax) {
  constexpr float kSmallest = std::numeric_limits<float>::min();
  switch (rule) {
    case ScaleRule::official: return ceil2(std::max(amax, kFloor) * kReciprocal448);
    case ScaleRule::official_f32: return std::max(amax, kFloor) * kReciprocal448;
    case ScaleRule::flashmla: return ceil2(std::max(amax / 448.0F, kFloor));
    case ScaleRule::sglang: {
      const float scale = amax / 448.0F;
      return scale == 0.0F ? kSmallest : scale;
    }
    case ScaleRule::vllm: break;
  }
  return std::max(amax / 448.0F, kSmallest);
}

float encode_tile(const QuantKernels& kernels, ScaleRule rule, const void* x, bool bfloat16, std::int64_t n,
                  std::uint8_t* codes) {
  const std::uint32_t bits = kernels.amax_bits(x, bfloat16, n);
  if (bits >= 0x7F800000U) {
    std::memset(codes, 0x7F, static_cast<std::size_t>(n));
    return 1.0F;
  }
  const float scale = tile_scale(rule, std::bit_cast<float>(bits));
  kernels.encode_e4m3(x, bfloat16, scale, codes, n);
  return scale;
}

}  // namespace sparsespan
