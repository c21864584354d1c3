#pragma once

// The same interface without the hardware, for tests: what TDPBF16PS computes, after Intel's description of it. Within
// one instruction the first and the second members of the pairs have a sum each, from zero, by fused multiply-adds over
// k ascending; the two are added, then added to c. Subnormals are zero in and out.

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

namespace {

struct TileFile {
  alignas(64) uint8_t rows[8][16][64];
};
thread_local TileFile tile_file;

struct Tiles {
  // Release leaves garbage: who computes without configuring first shall see it.
  static void configure() noexcept { memset(&tile_file, 0, sizeof tile_file); }
  static void release() noexcept { memset(&tile_file, 0xFF, sizeof tile_file); }
  template <int t>
  static void zero() {
    memset(tile_file.rows[t], 0, sizeof tile_file.rows[t]);
  }
  template <int t>
  static void load(const void* at, int64_t stride) {
    for (int r = 0; r < 16; ++r) memcpy(tile_file.rows[t][r], (const char*)at + r * stride, 64);
  }
  template <int t>
  static void store(void* at, int64_t stride) {
    for (int r = 0; r < 16; ++r) memcpy((char*)at + r * stride, tile_file.rows[t][r], 64);
  }
  template <int c, int a, int b>
  static void dot() {
    const unsigned mode = _mm_getcsr();
    _mm_setcsr(0x9FC0);  // all exceptions masked, to nearest, subnormals flushed
    const __m512i high = _mm512_set1_epi32((int)0xFFFF0000);
    for (int m = 0; m < 16; ++m) {
      __m512 first = _mm512_setzero_ps();
      __m512 second = _mm512_setzero_ps();
      for (int k = 0; k < 16; ++k) {
        int32_t pair;
        memcpy(&pair, tile_file.rows[a][m] + 4 * k, sizeof pair);
        const __m512i x = _mm512_set1_epi32(pair);
        const __m512i y = _mm512_load_si512(tile_file.rows[b][k]);
        first = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(x, 16)),
                                _mm512_castsi512_ps(_mm512_slli_epi32(y, 16)), first);
        second = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(x, high)),
                                 _mm512_castsi512_ps(_mm512_and_si512(y, high)), second);
      }
      float* row = (float*)tile_file.rows[c][m];
      _mm512_store_ps(row, _mm512_add_ps(_mm512_load_ps(row), _mm512_add_ps(first, second)));
    }
    _mm_setcsr(mode);
  }
};

}  // namespace
