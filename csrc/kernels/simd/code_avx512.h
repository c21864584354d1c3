#pragma once

// Float bits for quantisation. Include after vec_avx512.h.

#include <immintrin.h>
#include <stdint.h>

namespace {

struct Code {
  typedef __m512i Bits;
  static Bits zero() { return _mm512_setzero_si512(); }
  // The larger of each lane's bits and those of |x|.
  static Bits larger(Bits a, Vec::Float x) {
    return _mm512_max_epi32(a, _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7FFFFFFF)));
  }
  static uint32_t largest_lane(Bits a) { return (uint32_t)_mm512_reduce_max_epi32(a); }
  // 32 halves at a time: the larger of each and |x|'s.
  static constexpr int kHalves = 32;
  static Bits larger_halves(Bits a, const void* p) {
    return _mm512_max_epi16(a, _mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi16(0x7FFF)));
  }
  static uint32_t largest_half(Bits a) {
    return largest_lane(_mm512_max_epi32(_mm512_srli_epi32(a, 16), _mm512_and_si512(a, _mm512_set1_epi32(0xFFFF))));
  }
  // See round_e4m3 in body/quant.h for the arithmetic. Only the last eight bits are kept, so that what stands above
  // them in the sum does not matter; the code's own top bit, which may be wrong, is replaced by the sign.
  static void store_e4m3(uint8_t* p, Vec::Float x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i magnitude =
        _mm512_min_epi32(_mm512_and_si512(bits, _mm512_set1_epi32(0x7FFFFFFF)), _mm512_set1_epi32(0x43E00000));
    const __m512i exponent =
        _mm512_max_epi32(_mm512_and_si512(magnitude, _mm512_set1_epi32(0x7F800000)), _mm512_set1_epi32(0x3C800000));
    const __m512 big = _mm512_castsi512_ps(_mm512_add_epi32(exponent, _mm512_set1_epi32(20 << 23)));
    const __m512i sum = _mm512_castps_si512(_mm512_add_ps(_mm512_castsi512_ps(magnitude), big));
    const __m512i steps =
        _mm512_sub_epi32(_mm512_add_epi32(sum, _mm512_srli_epi32(exponent, 20)), _mm512_set1_epi32(121 << 3));
    const __m512i sign = _mm512_srli_epi32(bits, 24);
    // Bit 7 from the sign, the others from the steps.
    const __m512i code = _mm512_ternarylogic_epi32(_mm512_set1_epi32(0x80), sign, steps, 0xCA);
    _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(code));
  }
  // The same for 32 bfloat16 divided by 2^k, in 16-bit arithmetic: exponents shift by k, the last four of seven bits
  // are rounded off. False, and nothing stored, where a subnormal code is among them. `down` and `up` are 128 |k|, the
  // one that k's sign asks for.
  static bool store_halves(uint8_t* p, const void* x, int down, int up) {
    const __m512i bits = _mm512_loadu_si512(x);
    const __m512i shifted = _mm512_adds_epu16(
        _mm512_subs_epu16(_mm512_and_si512(bits, _mm512_set1_epi16(0x7FFF)), _mm512_set1_epi16((short)down)),
        _mm512_set1_epi16((short)up));
    const __m512i w = _mm512_min_epu16(shifted, _mm512_set1_epi16(0x43E0));  // 448
    // Up to 2^-10 all is zero; from there to 2^-6 it is subnormal.
    const __m512i above = _mm512_sub_epi16(w, _mm512_set1_epi16(0x3A81));
    if (_mm512_cmplt_epu16_mask(above, _mm512_set1_epi16(0x3C80 - 0x3A81)) != 0) return false;
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi16(w, 4), _mm512_set1_epi16(1));
    const __m512i steps = _mm512_srli_epi16(_mm512_add_epi16(_mm512_add_epi16(w, odd), _mm512_set1_epi16(7)), 4);
    const __m512i code = _mm512_maskz_sub_epi16(_mm512_cmpge_epu16_mask(w, _mm512_set1_epi16(0x3C80)), steps,
                                                _mm512_set1_epi16(120 << 3));
    const __m512i merged = _mm512_ternarylogic_epi32(_mm512_set1_epi16(0x80), _mm512_srli_epi16(bits, 8), code, 0xCA);
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi16_epi8(merged));
    return true;
  }
};

}  // namespace
