#include "quant/scale.h"

#include "kernels/body/scale.h"

namespace sparsespan {

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

float ceil2(float x) { return ceil_to_power_of_two(x); }

float tile_scale(ScaleRule rule, float amax) { return scale_of_tile(rule, amax); }

}  // namespace sparsespan
