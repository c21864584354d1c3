#pragma once

// Vec::Float to memory in the formats that rows come in. Include after vec_generic.h.

#include <stdint.h>
#include <string.h>

namespace {

struct Store {
  static constexpr bool kStreams = false;  // whether stores past the caches exist here
  static void float32(void* p, Vec::Float v) { memcpy(p, &v, sizeof v); }
  // Round to nearest even; NaN stays NaN, quiet, with its sign.
  static void bfloat16(void* p, Vec::Float v) {
    typedef uint16_t Half __attribute__((vector_size(8)));
    typedef uint32_t Word __attribute__((vector_size(16)));
    const Word u = (Word)v;
    const Word nan = (Word)((Vec::Int)(u & 0x7FFFFFFFU) > 0x7F800000);
    const Word rounded = (u + 0x7FFFU + (u >> 16 & 1U)) >> 16;
    const Word words = (nan & (u >> 16 | 0x40U)) | (~nan & rounded);
    const Half halves = __builtin_convertvector(words, Half);
    memcpy(p, &halves, sizeof halves);
  }
  static void stream_float32(void* p, Vec::Float v) { float32(p, v); }
  static void stream_bfloat16(void* p, Vec::Float v) { bfloat16(p, v); }
  static void stream_bytes(const void* from, void* to, int64_t n) { memcpy(to, from, (unsigned long)n); }
  static void fence() {}
};

}  // namespace
