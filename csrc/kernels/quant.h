#pragma once

// Inner loops of csrc/quant. noexcept, single-threaded, element by element (no reduction order to keep): the results
// are the same at every level. Rows come as float32 or, where `bfloat16` says so, as bfloat16, at any address.

#include <cstdint>

namespace sparsespan {

struct QuantKernels {
  // The largest bit pattern among |x[i]|, which is the bits of max |x[i]|; from 0x7F800000 on, x holds an infinity
  // or a NaN. 0 for n = 0.
  std::uint32_t (*amax_bits)(const void* x, bool bfloat16, std::int64_t n) noexcept;
  // codes[i] = e4m3(clamp(x[i] / scale, -448, 448)), rounded to nearest even, subnormals and the sign of zero kept.
  // Needs finite x and a finite scale > 0. `codes` may not overlap `x`.
  void (*encode_e4m3)(const void* x, bool bfloat16, float scale, std::uint8_t* codes, std::int64_t n) noexcept;
  // out[i] = table[codes[i]] * scale, with the 256 float32 values of e4m3 as the table; rounded once if `bfloat16`.
  // `stream`: out is not read again soon; where the address allows it, it goes past the caches.
  void (*decode_e4m3)(const std::uint8_t* codes, const float* table, float scale, void* out, bool bfloat16, bool stream,
                      std::int64_t n) noexcept;
  // memcpy past the caches.
  void (*copy_out)(const void* from, void* to, std::int64_t n) noexcept;
  // After the last streamed store of a task.
  void (*fence)() noexcept;
};

const QuantKernels& quant_kernels();

}  // namespace sparsespan
