#pragma once

// Inner loops of csrc/quant. noexcept, single-threaded, element by element (no reduction order to keep).

#include <cstdint>

namespace sparsespan {

struct QuantKernels {
  // The largest bit pattern among |x[i]|, which is the bits of max |x[i]|; from 0x7F800000 on, x holds an infinity
  // or a NaN. 0 for n = 0.
  std::uint32_t (*amax_bits)(const float* x, std::int64_t n) noexcept;
  // codes[i] = e4m3(clamp(x[i] / scale, -448, 448)), rounded to nearest even, subnormals and the sign of zero kept.
  // Needs finite x and a finite scale > 0. `codes` may not overlap `x`.
  void (*encode_e4m3)(const float* x, float scale, std::uint8_t* codes, std::int64_t n) noexcept;
  // out[i] = table[codes[i]] * scale, with the 256 float32 values of e4m3 as the table.
  void (*decode_e4m3)(const std::uint8_t* codes, const float* table, float scale, float* out, std::int64_t n) noexcept;
};

const QuantKernels& quant_kernels();

}  // namespace sparsespan
