#pragma once

// How a tile's fp8 scale follows from its largest magnitude: the rules (kernels/quant.h) by name and by number.

#include <cstdint>
#include <string_view>

#include "core/check.h"
#include "kernels/quant.h"

namespace sparsespan {

// "official", "flashmla", "sglang", "vllm".
ScaleRule parse_scale_rule(std::string_view op, std::string_view argument, std::string_view text);
// "ue8m0" -> official. (No format at all is official_f32.)
ScaleRule parse_scale_fmt(std::string_view op, std::string_view argument, std::string_view text);

// By the bits: exact, where ceil(log2f(x)) misses the values just above a power of two. x normal and positive.
float ceil2(float x);
// Finite and > 0 for every finite amax >= 0.
float tile_scale(ScaleRule rule, float amax);

}  // namespace sparsespan
