#pragma once

// 128-bit float vectors through the compiler's vector extension: SSE2, NEON or plain scalars, the same arithmetic
// everywhere (-ffp-contract=off: multiply, round, add, round). Anonymous namespace: code built for one ISA level
// must never be merged by the linker with another level's.

#include <stdint.h>
#include <string.h>

namespace {

struct Vec {
  typedef float Float __attribute__((vector_size(16)));
  typedef int32_t Int __attribute__((vector_size(16)));
  static constexpr int kLanes = 4;

  static Float zero() { return Float{0, 0, 0, 0}; }
  static Float broadcast(float x) { return Float{x, x, x, x}; }
  static Float load(const float* p) {
    Float v;
    memcpy(&v, p, sizeof v);
    return v;
  }
  static void store(float* p, Float v) { memcpy(p, &v, sizeof v); }
  static Float madd(Float a, Float b, Float c) { return a * b + c; }
  // Where a or b is NaN the result is b: relu and running maxima put the data there on purpose.
  static Float max(Float a, Float b) {
    const Int greater = a > b;
    return (Float)((greater & (Int)a) | (~greater & (Int)b));
  }
  static Float relu(Float x) { return max(zero(), x); }  // relu(NaN) = NaN
  // a < b ? x : y, per lane; a comparison with NaN takes y.
  static Float select_less(Float a, Float b, Float x, Float y) {
    const Int less = a < b;
    return (Float)((less & (Int)x) | (~less & (Int)y));
  }
  // Bit i of `bits` set ? x : y, per lane i.
  static Float select_bits(uint64_t bits, Float x, Float y) {
    const Int lane = {1, 2, 4, 8};
    const int32_t b = (int32_t)bits;
    const Int set = (Int{b, b, b, b} & lane) == lane;
    return (Float)((set & (Int)x) | (~set & (Int)y));
  }
  static Int to_int_nearest(Float x) {
    // Valid for |x| < 2^22: the bias pushes the fraction out, rounding to nearest even.
    const Float bias = broadcast(12582912.0F);
    return (Int)(x + bias) - (Int)bias;
  }
  static Float to_float(Int x) { return __builtin_convertvector(x, Float); }
  static Float scale_by_power_of_two(Float x, Int e) { return x * (Float)((e + 127) << 23); }
};

}  // namespace
