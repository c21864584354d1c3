#pragma once

// Rows of float32 and bfloat16 as vectors. Include after kernels/simd/{vec,decode,store}_<isa>.h.

#include <stdint.h>
#include <string.h>

namespace {

struct F32 {
  static constexpr int kBytes = 4;
  static Vec::Float load(const char* p) { return Decode::load_float32(p); }
  template <bool stream>
  static void store(char* p, Vec::Float v) {
    if (stream) {
      Store::stream_float32(p, v);
    } else {
      Store::float32(p, v);
    }
  }
  static float get(const char* p) {
    float value;
    memcpy(&value, p, sizeof value);
    return value;
  }
  static void put(char* p, float value) { memcpy(p, &value, sizeof value); }
  static Vec::Float round(Vec::Float v) { return v; }
  static float round(float value) { return value; }
};

struct Bf16 {
  static constexpr int kBytes = 2;
  static Vec::Float load(const char* p) { return Decode::load_bfloat16(p); }
  template <bool stream>
  static void store(char* p, Vec::Float v) {
    if (stream) {
      Store::stream_bfloat16(p, v);
    } else {
      Store::bfloat16(p, v);
    }
  }
  static float get(const char* p) {
    uint16_t half;
    memcpy(&half, p, sizeof half);
    return __builtin_bit_cast(float, (uint32_t)half << 16);
  }
  static void put(char* p, float value) {
    const uint32_t u = __builtin_bit_cast(uint32_t, value);
    const bool nan = (u & 0x7FFFFFFFU) > 0x7F800000U;
    const uint16_t half = (uint16_t)(nan ? u >> 16 | 0x40U : (u + 0x7FFFU + (u >> 16 & 1U)) >> 16);
    memcpy(p, &half, sizeof half);
  }
  static Vec::Float round(Vec::Float v) {
    char halves[Vec::kLanes * kBytes];
    Store::bfloat16(halves, v);
    return load(halves);
  }
  static float round(float value) {
    char half[kBytes];
    put(half, value);
    return get(half);
  }
};

// Stores past the caches need addresses that are multiples of 16.
inline bool can_stream(bool wanted, const void* p, int64_t stride_bytes) {
  return wanted && Store::kStreams && ((uint64_t)p | (uint64_t)stride_bytes) % 16 == 0;
}

}  // namespace
