#pragma once

// Vectors of 32 bfloat16 as pairs of float32 vectors, and butterflies across them. Needs AVX-512 DQ and BF16; include
// after vec_avx512.h and store_avx512.h.

#include <immintrin.h>
#include <stdint.h>

namespace {

struct Pair {
  Vec::Float a;
  Vec::Float b;
};

struct Pairs {
  // a: the elements of even place, b: of odd.
  static Pair load(const char* p) {
    const __m512i x = _mm512_loadu_si512(p);
    return {_mm512_castsi512_ps(_mm512_slli_epi32(x, 16)),
            _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32((int)0xFFFF0000)))};
  }
  // a: the first 16 elements, b: the others.
  static Pair neighbours(__m512i x) {
    const __m512i low = _mm512_load_si512(kSpread.word);
    const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    return {_mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xAAAAAAAA, low, x)),
            _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xAAAAAAAA, high, x))};
  }
  static Pair neighbours(const char* p) { return neighbours(_mm512_loadu_si512(p)); }
  // The same as load of 32 float32.
  static Pair load_float32(const float* p) {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512 low = _mm512_loadu_ps(p);
    const __m512 high = _mm512_loadu_ps(p + 16);
    return {_mm512_permutex2var_ps(low, even, high),
            _mm512_permutex2var_ps(low, _mm512_add_epi32(even, _mm512_set1_epi32(1)), high)};
  }
  // 32 bfloat16 and their first butterfly: a the sums of elements 2 i and 2 i + 1, b the differences. Each is a dot
  // product of two with ones (1, -1) on top of -0, which leaves the sign of every zero as an addition would; rounded
  // once, exact but for subnormals, which it takes and gives as zeros.
  static Pair butterflies(__m512i x) {
    const __m512 nothing = _mm512_set1_ps(-0.0F);
    return {_mm512_dpbf16_ps(nothing, (__m512bh)x, (__m512bh)_mm512_set1_epi32(0x3F803F80)),
            _mm512_dpbf16_ps(nothing, (__m512bh)x, (__m512bh)_mm512_set1_epi32((int)0xBF803F80))};
  }
  // The bit of the place that tells a from b goes into the lanes' numbers, the least bit of these comes out: twice for
  // the bits within 128-bit lanes, twice for those of the lanes, and a and b hold 16 neighbours each.
  template <bool within>
  static Pair regroup(Pair m) {
    if (within) return {_mm512_shuffle_ps(m.a, m.b, 0x88), _mm512_shuffle_ps(m.a, m.b, 0xDD)};
    return {_mm512_shuffle_f32x4(m.a, m.b, 0x88), _mm512_shuffle_f32x4(m.a, m.b, 0xDD)};
  }
  // Whether some of vecs * 32 bfloat16 is not zero and less than the one with half these bits.
  template <int vecs>
  static bool any_below(const char* p, uint32_t twice) {
    __m512i least = _mm512_set1_epi16(-1);
    for (int i = 0; i < vecs; ++i) {
      const __m512i x = _mm512_loadu_si512(p + 64 * i);
      least = _mm512_min_epu16(least, _mm512_add_epi16(_mm512_add_epi16(x, x), _mm512_set1_epi16(-1)));
    }
    return _mm512_cmplt_epu16_mask(least, _mm512_set1_epi16((short)(twice - 1))) != 0;
  }
  // Not 0 where one is a subnormal number, which vcvtne2ps2bf16 would flush.
  static __mmask16 subnormal(Pair m) {
    return _kor_mask16(_mm512_fpclass_ps_mask(m.a, 0x20), _mm512_fpclass_ps_mask(m.b, 0x20));
  }
  // a's 16 elements, then b's. Without subnormals among them.
  static __m512i rounded(Pair m) { return (__m512i)_mm512_cvtne2ps_pbh(m.b, m.a); }
  // a's elements at even places, b's at odd ones.
  static __m512i interleaved(__m512i halves) {
    return _mm512_permutexvar_epi16(_mm512_load_si512(kTurns.word), halves);
  }
  // Any values, by way of memory.
  static __m512i rounded_slowly(Pair m) {
    alignas(64) char halves[64];
    Store::bfloat16(halves, m.a);
    Store::bfloat16(halves + 32, m.b);
    return _mm512_load_si512(halves);
  }
  // 64 bytes; past the caches to a multiple of 16.
  template <bool stream>
  static void store(char* p, __m512i v) {
    if (!stream) {
      _mm512_storeu_si512(p, v);
    } else if ((uint64_t)p % 64 == 0) {
      _mm512_stream_si512((__m512i*)p, v);
    } else {
      _mm_stream_si128((__m128i*)p, _mm512_castsi512_si128(v));
      _mm_stream_si128((__m128i*)p + 1, _mm512_extracti32x4_epi32(v, 1));
      _mm_stream_si128((__m128i*)p + 2, _mm512_extracti32x4_epi32(v, 2));
      _mm_stream_si128((__m128i*)p + 3, _mm512_extracti32x4_epi32(v, 3));
    }
  }

 private:
  struct Turns {
    alignas(64) uint16_t word[32];
  };
  static constexpr Turns kTurns = [] {
    Turns t{};
    for (int i = 0; i < 32; ++i) t.word[i] = (uint16_t)(i / 2 + i % 2 * 16);
    return t;
  }();
  static constexpr Turns kSpread = [] {
    Turns t{};
    for (int i = 0; i < 32; ++i) t.word[i] = (uint16_t)(i / 2);
    return t;
  }();
};

// 64 bytes after 64 bytes past the caches, to any multiple of 4: whole lines, each put together from two vectors, so
// that only the first and the last line of a run are shared with others.
struct Lines {
  explicit Lines(char* to)
      : line((char*)((uint64_t)to & ~(uint64_t)63)),
        shift((int)((uint64_t)to % 64 / 4)),
        place(_mm512_add_epi32(_mm512_set1_epi32(16 - shift),
                               _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15))) {}
  void put(__m512i v) {
    const __m512i whole = _mm512_permutex2var_epi32(held, place, v);
    if (__builtin_expect(fresh && shift != 0, 0)) {
      _mm512_mask_storeu_epi32(line, (__mmask16)(0xFFFFU << shift), whole);
    } else {
      _mm512_stream_si512((__m512i*)line, whole);
    }
    fresh = false;
    held = v;
    line += 64;
  }
  void finish() {
    if (fresh || shift == 0) return;
    _mm512_mask_storeu_epi32(line, (__mmask16)((1U << shift) - 1), _mm512_permutex2var_epi32(held, place, held));
  }

  char* line;
  int shift;  // words of the first line that are not ours
  __m512i place;
  __m512i held = _mm512_setzero_si512();  // the last vector
  bool fresh = true;
};

}  // namespace
