#pragma once

// Include after attention_narrow_layout.h and attention_bf16.h or attention_tiles.h, which give
//   kUnit                         keys that are multiplied together
//   score_block<seen>(block, largest)  s[key][col] = q . k; largest[col] = max of s * sm_scale over the block's keys
//   store_weights(pairs, out)     16 vectors of pairs of weights, 16 columns each, as value_block wants them
//   value_block(block)            o[col][dv] = sum over keys of p * v

#include <stdint.h>

#include "kernels/body/exp.h"

namespace {

// rows[16][stride] -> out[stride / 2][16][2]
void pack_queries(const uint16_t* rows, int64_t stride, uint16_t* out) noexcept {
  const void* at[16];
  for (int i = 0; i < 16; ++i) at[i] = rows + i * stride;
  Halves::pairs(at, false, stride, stride, out);
}

// Pairs of keys interleaved: out[strip of 16 values][pair][16][2], zero for keys from n to the next multiple of 32.
void pack_values(const uint16_t* k, int64_t stride, int64_t n, int64_t d_v, uint16_t* out) noexcept {
  alignas(64) int16_t low[32];
  alignas(64) int16_t high[32];
  for (int i = 0; i < 32; ++i) {
    low[i] = (int16_t)(i / 2 + i % 2 * 32);
    high[i] = (int16_t)(low[i] + 16);
  }
  const __m512i take_low = _mm512_load_si512(low);
  const __m512i take_high = _mm512_load_si512(high);
  const int64_t pairs = (n + 31) / 32 * 16;
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const uint16_t* row = k + 2 * pair * stride;
    const __mmask32 first = 2 * pair < n ? ~(__mmask32)0 : 0;
    const __mmask32 second = 2 * pair + 1 < n ? ~(__mmask32)0 : 0;
    uint16_t* to = out + pair * 32;
    for (int64_t d = 0; d < d_v; d += 32) {
      const __m512i a = _mm512_maskz_loadu_epi16(first, row + d);
      const __m512i b = _mm512_maskz_loadu_epi16(second, row + stride + d);
      _mm512_storeu_si512(to + d / 16 * kValueStrip, _mm512_permutex2var_epi16(a, take_low, b));
      if (d + 16 < d_v)
        _mm512_storeu_si512(to + (d / 16 + 1) * kValueStrip, _mm512_permutex2var_epi16(a, take_high, b));
    }
  }
}

// bfloat16(float(e4m3) * scale), n a multiple of 16.
void decode_fp8(const uint8_t* in, float scale, uint16_t* out, int64_t n) noexcept {
  const Vec::Float factor = Vec::broadcast(scale);
  for (int64_t i = 0; i < n; i += 16) {
    const Vec::Float x = Decode::load_e4m3(in + i, nullptr) * factor;
    _mm256_storeu_si256((__m256i*)(out + i), (__m256i)_mm512_cvtneps_pbh(x));
  }
}

// Scores of 16 columns to weights in bfloat16, and their float32 sum. Keys ascending.
template <bool kSeen>
inline void softmax_columns(const NarrowBlock& b, int64_t col, Vec::Float m, Vec::Float& l) {
  const Vec::Float scale = Vec::broadcast(b.sm_scale);
  // A column without keys, or with -inf scores only, has m = -inf: subtract 0 instead, and every weight is 0.
  const Vec::Float shift = Vec::select_less(minus_infinity(), m, m, Vec::zero());
  l = Vec::zero();
  uint16_t* out = b.p + col / 16 * kWeightTile;
  for (int64_t key = 0; key < b.n; key += 32, out += 16 * 32) {
    Vec::Float pairs[16];
    for (int i = 0; i < 16; ++i) {
      __m512i words[2];
      for (int j = 0; j < 2; ++j) {
        const int64_t at = key + 2 * i + j;
        Vec::Float p = Vec::zero();
        if (at < b.n) {
          p = exp_vec(visible<kSeen>(b, at, col, Vec::load(b.s + at * kScoreStride + col) * scale) - shift);
          l = l + p;
        }
        words[j] = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(p));
      }
      pairs[i] = _mm512_castsi512_ps(_mm512_or_si512(words[0], _mm512_slli_epi32(words[1], 16)));
    }
    store_weights(pairs, out);
  }
}

template <bool kSeen>
inline void attend_columns(const NarrowBlock& b) {
  float largest[kScoreStride];
  score_block<kSeen>(b, largest);
  for (int64_t col = 0; col < b.cols; col += 16) {
    const __mmask16 there = b.cols - col >= 16 ? (__mmask16)0xFFFF : (__mmask16)((1U << (b.cols - col)) - 1);
    const Vec::Float m = Vec::load(largest + col);
    Vec::Float l;
    softmax_columns<kSeen>(b, col, m, l);
    _mm512_mask_storeu_ps(b.m + col, there, m);
    _mm512_mask_storeu_ps(b.l + col, there, l);
  }
  value_block(b);
}

void attend(const NarrowBlock& b) noexcept {
  if (b.seen == nullptr) {
    attend_columns<false>(b);
  } else {
    attend_columns<true>(b);
  }
}

constexpr sparsespan::NarrowAttentionKernels kTable = {.pack_queries = pack_queries,
                                                       .pack_values = pack_values,
                                                       .decode_fp8 = decode_fp8,
                                                       .attend = attend,
                                                       .unit = kUnit,
                                                       .tiles = kTileSwitch};

}  // namespace
