#pragma once

// Which of 16 floats are worth a closer look, and what to do with keys 16 at a time. Include after vec_avx512.h.

#include <immintrin.h>
#include <stdint.h>

namespace {

struct Filter {
  static constexpr int kStep = 16;
  static constexpr bool kKeys = true;     // load() to store_all() exist
  static constexpr bool kAppends = true;  // append() and keep() exist

  // A mask of those of p[0..16) that are not below `floor`. NaN is never below.
  static uint32_t not_below(const float* p, Vec::Float floor) {
    return _mm512_cmp_ps_mask(_mm512_loadu_ps(p), floor, _CMP_NLT_UQ);
  }

  struct Appended {
    int count;
    int ties;      // keys equal to the floor
    uint32_t nan;  // mask
  };
  // Keys and indices (first + place) of p's places in `mask`; the mask may hold a few that are below the floor.
  static Appended append(const float* p, uint32_t mask, uint32_t floor, int32_t first, uint32_t* keys,
                         int32_t* indices) {
    const __m512i bits = _mm512_loadu_si512(p);
    const __mmask16 nan = _mm512_cmp_ps_mask(_mm512_castsi512_ps(bits), _mm512_castsi512_ps(bits), _CMP_UNORD_Q);
    const __m512i sign = _mm512_set1_epi32((int)0x80000000);
    const __mmask16 minus_zero = _mm512_cmpeq_epi32_mask(bits, sign);
    const __m512i plain = _mm512_mask_mov_epi32(bits, minus_zero, _mm512_setzero_si512());
    const __m512i flips = _mm512_or_si512(_mm512_srai_epi32(plain, 31), sign);
    const __m512i key = _mm512_mask_mov_epi32(_mm512_xor_si512(plain, flips), nan, _mm512_set1_epi32(1));
    const __m512i floors = _mm512_set1_epi32((int)floor);
    const auto kept = (__mmask16)(mask & _mm512_cmpge_epu32_mask(key, floors));
    const int count = __builtin_popcount(kept);
    store(keys, _mm512_maskz_compress_epi32(kept, key), count);
    store(indices, _mm512_maskz_compress_epi32(kept, _mm512_add_epi32(places(), _mm512_set1_epi32(first))), count);
    return {count, __builtin_popcount(_mm512_mask_cmpeq_epi32_mask(kept, key, floors)), mask & nan};
  }

  // Moves those of keys[0..n), n <= 16, that are above `cut`, and the first `ties` of those equal to it, to to[..].
  static int keep(const uint32_t* keys, const int32_t* indices, int n, uint32_t cut, int64_t* ties, uint32_t* to_keys,
                  int32_t* to_indices) {
    const auto lanes = (__mmask16)(0xFFFFU >> (16 - n));
    const __m512i key = _mm512_maskz_loadu_epi32(lanes, keys);
    const __m512i index = _mm512_maskz_loadu_epi32(lanes, indices);
    const __m512i cuts = _mm512_set1_epi32((int)cut);
    uint32_t kept = _mm512_mask_cmpgt_epu32_mask(lanes, key, cuts);
    for (uint32_t same = _mm512_mask_cmpeq_epi32_mask(lanes, key, cuts); same != 0; same &= same - 1) {
      if (*ties >= __builtin_popcount(same)) {
        kept |= same;
        *ties -= __builtin_popcount(same);
        break;
      }
      if (*ties == 0) break;
      kept |= same & -same;
      --*ties;
    }
    const int count = __builtin_popcount(kept);
    store(to_keys, _mm512_maskz_compress_epi32((__mmask16)kept, key), count);
    store(to_indices, _mm512_maskz_compress_epi32((__mmask16)kept, index), count);
    return count;
  }

  typedef __m512i Keys;
  static Keys load(const uint32_t* p) { return _mm512_loadu_si512(p); }
  static Keys lesser(Keys a, Keys b) { return _mm512_min_epu32(a, b); }
  static Keys greater(Keys a, Keys b) { return _mm512_max_epu32(a, b); }
  static Keys minus(Keys a, Keys b) { return _mm512_sub_epi32(a, b); }
  static int count_at_least(const uint32_t* p, Keys least) {
    return __builtin_popcount(_mm512_cmpge_epu32_mask(load(p), least));
  }
  static Keys broadcast(uint32_t key) { return _mm512_set1_epi32((int)key); }
  static void store_all(uint32_t* p, Keys v) { _mm512_storeu_si512(p, v); }

 private:
  static __m512i places() { return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }
  static void store(void* p, __m512i v, int count) { _mm512_mask_storeu_epi32(p, (__mmask16)((1U << count) - 1U), v); }
};

}  // namespace
