#pragma once

// Narrow floats to Vec::Float and back to square blocks. Include after vec_generic.h.

#include <stdint.h>
#include <string.h>

namespace {

struct Decode {
  static Vec::Float load_float32(const void* p) {
    Vec::Float v;
    memcpy(&v, p, sizeof v);
    return v;
  }
  static Vec::Float load_bfloat16(const void* p) {
    typedef uint16_t Half __attribute__((vector_size(8)));
    typedef uint32_t Word __attribute__((vector_size(16)));
    Half h;
    memcpy(&h, p, sizeof h);
    return (Vec::Float)(__builtin_convertvector(h, Word) << 16);
  }
  static Vec::Float load_e4m3(const void* p, const float* table) {
    const uint8_t* code = (const uint8_t*)p;
    return Vec::Float{table[code[0]], table[code[1]], table[code[2]], table[code[3]]};
  }
  // m[i][j] <-> m[j][i]
  static void transpose(Vec::Float (&m)[4]) {
    const Vec::Float a = __builtin_shufflevector(m[0], m[1], 0, 4, 1, 5);
    const Vec::Float b = __builtin_shufflevector(m[0], m[1], 2, 6, 3, 7);
    const Vec::Float c = __builtin_shufflevector(m[2], m[3], 0, 4, 1, 5);
    const Vec::Float d = __builtin_shufflevector(m[2], m[3], 2, 6, 3, 7);
    m[0] = __builtin_shufflevector(a, c, 0, 1, 4, 5);
    m[1] = __builtin_shufflevector(a, c, 2, 3, 6, 7);
    m[2] = __builtin_shufflevector(b, d, 0, 1, 4, 5);
    m[3] = __builtin_shufflevector(b, d, 2, 3, 6, 7);
  }
};

}  // namespace
