#pragma once

// Float bits for quantisation. Include after vec_generic.h.

#include <stdint.h>
#include <string.h>

namespace {

struct Code {
  typedef Vec::Int Bits;
  typedef int16_t Halves __attribute__((vector_size(16)));
  static Bits zero() { return Bits{0, 0, 0, 0}; }
  // The larger of each lane's bits and those of |x|.
  static Bits larger(Bits a, Vec::Float x) {
    const Bits b = (Bits)x & 0x7FFFFFFF;
    const Bits greater = a > b;
    return (greater & a) | (~greater & b);
  }
  static uint32_t largest_lane(Bits a) {
    int32_t result = 0;
    for (int i = 0; i < Vec::kLanes; ++i) result = a[i] > result ? a[i] : result;
    return (uint32_t)result;
  }
  // Eight halves at a time: the larger of each and |x|'s.
  static constexpr int kHalves = 8;
  static Bits larger_halves(Bits a, const void* p) {
    Halves x;
    memcpy(&x, p, sizeof x);
    const Halves b = x & 0x7FFF;
    const Halves greater = (Halves)((Halves)a > b);
    return (Bits)((greater & (Halves)a) | (~greater & b));
  }
  static uint32_t largest_half(Bits a) {
    const Halves h = (Halves)a;
    int32_t result = 0;
    for (int i = 0; i < kHalves; ++i) result = h[i] > result ? h[i] : result;
    return (uint32_t)result;
  }
  // See round_e4m3 in body/quant.h for the arithmetic.
  static void store_e4m3(uint8_t* p, Vec::Float x) {
    typedef uint8_t Bytes __attribute__((vector_size(4)));
    const Bits bits = (Bits)x;
    const Bits magnitude = lesser(bits & 0x7FFFFFFF, 0x43E00000);
    const Bits exponent = larger((magnitude & 0x7F800000), (Vec::Float)(zero() + 0x3C800000));
    const Vec::Float sum = (Vec::Float)magnitude + (Vec::Float)(exponent + (20 << 23));
    const Bits code = ((Bits)sum + (exponent >> 20) - (121 << 3)) & 0x7F;
    const Bytes bytes = __builtin_convertvector(code | (bits >> 24 & 0x80), Bytes);
    memcpy(p, &bytes, sizeof bytes);
  }

 private:
  static Bits lesser(Bits a, int32_t b) {
    const Bits less = a < b;
    return (less & a) | (~less & b);
  }
};

}  // namespace
