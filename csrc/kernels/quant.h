#pragma once

// Inner loops of csrc/quant. noexcept, single-threaded, element by element (no reduction order to keep): the results
// are the same at every level. Rows come as float32 or, where `bfloat16` says so, as bfloat16, at any address.

#include <cstdint>

namespace sparsespan {

// How a tile's scale follows from amax, its largest |x|. ceil2: the smallest power of two >= its argument; all in
// float32. The arithmetic is in body/scale.h.
enum class ScaleRule : std::uint8_t {
  official,      // ceil2(max(amax, 1e-4) * (1/448)): DeepSeek act_quant with a scale_fmt
  official_f32,  // max(amax, 1e-4) * (1/448): the same without
  flashmla,      // ceil2(max(amax / 448, 1e-4)): FlashMLA quantize_k_cache; no scale below 2^-13
  sglang,  // amax / 448: SGLang quantize_k_cache, but where that is 0 (a zero tile: 0/0 there) the scale is 2^-126
  vllm,    // max(amax / 448, 2^-126): vLLM fp8_ds_mla
};

// Rows of n values, a multiple of `tile`, each tile with a scale of its own. A tile that holds a NaN or an infinity
// becomes NaN codes with scale 1: full validation refuses such input, trusted input and unwritten cache memory get
// here. Strides between rows count bytes; what lies between their elements is not touched. Any address will do.
struct EncodeRows {
  const void* x;
  bool bfloat16;
  ScaleRule rule;
  std::int64_t tile;
  std::int64_t n;
  std::uint8_t* codes;  // may not overlap x
  void* scales;         // [n / tile] float32
  std::int64_t rows = 1;
  std::int64_t x_stride = 0;
  std::int64_t codes_stride = 0;
  std::int64_t scales_stride = 0;
};

// Rows of n codes, tile by tile with its scale; the last tile may be a part of one.
struct DecodeRows {
  const std::uint8_t* codes;
  const float* table;  // the 256 float32 values of e4m3
  const void* scales;  // [ceil(n / tile)] float32
  std::int64_t tile;
  std::int64_t n;
  void* out;      // table[code] * scale
  bool bfloat16;  // out: rounded once
  std::int64_t rows = 1;
  std::int64_t codes_stride = 0;
  std::int64_t scales_stride = 0;
  std::int64_t out_stride = 0;
};

struct QuantKernels {
  // The largest bit pattern among |x[i]|, which is the bits of max |x[i]|; from 0x7F800000 on, x holds an infinity
  // or a NaN. 0 for n = 0.
  std::uint32_t (*amax_bits)(const void* x, bool bfloat16, std::int64_t n) noexcept;
  // codes[i] = e4m3(clamp(x[i] / scale, -448, 448)), rounded to nearest even, subnormals and the sign of zero kept.
  // Needs finite x and a finite scale > 0. `codes` may not overlap `x`.
  void (*encode_e4m3)(const void* x, bool bfloat16, float scale, std::uint8_t* codes, std::int64_t n) noexcept;
  void (*encode_rows)(const EncodeRows&) noexcept;
  void (*decode_rows)(const DecodeRows&) noexcept;
  // memcpy past the caches: `to` is not read again soon.
  void (*copy_out)(const void* from, void* to, std::int64_t n) noexcept;
  // After the last streamed store of a task.
  void (*fence)() noexcept;
};

const QuantKernels& quant_kernels();

}  // namespace sparsespan
