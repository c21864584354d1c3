#pragma once

// How a tile's fp8 scale follows from its largest magnitude.

#include <cstdint>
#include <string_view>

#include "core/check.h"
#include "kernels/quant.h"

namespace sparsespan {

// amax is the largest |x| of the tile, ceil2 the smallest power of two >= its argument; all in float32.
enum class ScaleRule : std::uint8_t {
  official,      // ceil2(max(amax, 1e-4) * (1/448)): DeepSeek act_quant with a scale_fmt
  official_f32,  // max(amax, 1e-4) * (1/448): the same without
  flashmla,      // ceil2(max(amax / 448, 1e-4)): FlashMLA quantize_k_cache; no scale below 2^-13
  sglang,  // amax / 448: SGLang quantize_k_cache, but where that is 0 (a zero tile: 0/0 there) the scale is 2^-126
  vllm,    // max(amax / 448, 2^-126): vLLM fp8_ds_mla
};

// "official", "flashmla", "sglang", "vllm".
ScaleRule parse_scale_rule(std::string_view op, std::string_view argument, std::string_view text);
// "ue8m0" -> official. (No format at all is official_f32.)
ScaleRule parse_scale_fmt(std::string_view op, std::string_view argument, std::string_view text);

// By the bits: exact, where ceil(log2f(x)) misses the values just above a power of two. x normal and positive.
float ceil2(float x);
// Finite and > 0 for every finite amax >= 0.
float tile_scale(ScaleRule rule, float amax);

// Quantises one tile and returns its scale. A tile that holds a NaN or an infinity becomes NaN codes with scale 1: full
// validation refuses such input, trusted input and unwritten cache memory get here. x: float32 or bfloat16.
float encode_tile(const QuantKernels& kernels, ScaleRule rule, const void* x, bool bfloat16, std::int64_t n,
                  std::uint8_t* codes);

}  // namespace sparsespan
