#pragma once

// Tiles of bfloat16 in 16-bit arithmetic, and of codes looked up by bytes. Needs AVX-512 VBMI and BF16; include after
// half_steps_avx512.h and halves_avx512.h.

#include <immintrin.h>
#include <stdint.h>

namespace {

struct Tile {
  static constexpr int kHalves = 32;  // elements at a time
  static constexpr int kCodes = 64;
  typedef HalfRange Range;
  static Range range(const char* x, int64_t n) { return half_range(x, n); }

  // Packing two vectors at a time by a permutation of bytes was no quicker.
  static void encode(const char* x, uint32_t base, uint8_t* codes, int64_t n) { encode_half_steps(x, base, codes, n); }

  // Exact where the products are no subnormals: vcvtne2ps2bf16 would flush those.
  static void decode(const uint8_t* codes, float scale, char* out, int64_t n) {
    const __m512 scales = _mm512_set1_ps(scale);
    const __m512i order = _mm512_load_si512(kOrder.words);
    const __m512i zero = _mm512_setzero_si512();
    for (int64_t i = 0; i < n; i += kCodes) {
      const __m512i c = _mm512_permutexvar_epi32(order, _mm512_loadu_si512(codes + i));
      const __m512i low =
          _mm512_permutex2var_epi8(_mm512_load_si512(kE4M3Halves.low), c, _mm512_load_si512(kE4M3Halves.low + 64));
      const __m512i most =
          _mm512_permutex2var_epi8(_mm512_load_si512(kE4M3Halves.high), c, _mm512_load_si512(kE4M3Halves.high + 64));
      // The sign of all but NaN, 0x7F and 0xFF: NaN comes out the same at every level.
      const __m512i next = _mm512_add_epi8(c, _mm512_set1_epi8(1));
      const __m512i sign = _mm512_ternarylogic_epi32(_mm512_set1_epi8((char)0x80), c, next, 0x80);  // and
      const __m512i high = _mm512_or_si512(most, sign);
      const __m512i first = _mm512_unpacklo_epi8(low, high);
      const __m512i second = _mm512_unpackhi_epi8(low, high);
      _mm512_storeu_si512(out + 2 * i, scaled(first, scales, zero));
      _mm512_storeu_si512(out + 2 * i + 64, scaled(second, scales, zero));
    }
  }

 private:
  // 32 bfloat16 as float32 (four of each 128-bit lane at a time), times scale, and back: quads 0, 2, 4, 6, 1, 3, 5, 7.
  static __m512i scaled(__m512i halves, __m512 scale, __m512i zero) {
    const __m512 a = _mm512_castsi512_ps(_mm512_unpacklo_epi16(zero, halves)) * scale;
    const __m512 b = _mm512_castsi512_ps(_mm512_unpackhi_epi16(zero, halves)) * scale;
    return (__m512i)_mm512_cvtne2ps_pbh(b, a);
  }

  // Quads of codes go where unpacking by bytes, unpacking by words and rounding bring them back in order. Dword d of
  // the codes is quad d of the output.
  struct Order {
    alignas(64) int32_t words[16];
  };
  static constexpr Order kOrder = [] {
    Order o{};
    // After the byte unpack, half h (first: 0) holds in its lane l, words 0..3, dword 4 l + 2 h, and in words 4..7
    // dword 4 l + 2 h + 1. The word unpack then gives the former of all lanes to quads 0..3 of that half's 32, the
    // latter to quads 4..7.
    for (int h = 0; h < 2; ++h) {
      for (int l = 0; l < 4; ++l) {
        o.words[4 * l + 2 * h] = 8 * h + l;
        o.words[4 * l + 2 * h + 1] = 8 * h + 4 + l;
      }
    }
    return o;
  }();
};

}  // namespace
