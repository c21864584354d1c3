#pragma once

// Rows of e4m3 or bfloat16 to pairs of bfloat16, as the dot products of bfloat16 take them. Needs AVX-512 BW and VBMI;
// include after vec_avx512.h and decode_avx512.h.

#include <immintrin.h>
#include <stdint.h>

namespace {

// The 128 positive e4m3 codes as bfloat16, exact, subnormals included; low and high bytes apart.
struct E4M3Halves {
  alignas(64) uint8_t low[128];
  alignas(64) uint8_t high[128];
};

constexpr uint16_t e4m3_half(uint32_t code) {
  const uint32_t e = code >> 3;
  const uint32_t m = code & 7U;
  if (code == 0x7FU) return 0x7FC0;  // NaN
  if (e != 0) return (uint16_t)((e + 120U) << 7 | m << 4);
  if (m == 0) return 0;
  const uint32_t top = m >= 4 ? 2 : m >= 2 ? 1 : 0;  // m * 2^-9 = 1.f * 2^(top - 9)
  return (uint16_t)((top + 118U) << 7 | (m << (7U - top) & 0x7FU));
}

constexpr E4M3Halves make_e4m3_halves() {
  E4M3Halves t{};
  for (uint32_t code = 0; code < 128; ++code) {
    t.low[code] = (uint8_t)e4m3_half(code);
    t.high[code] = (uint8_t)(e4m3_half(code) >> 8);
  }
  return t;
}

constexpr E4M3Halves kE4M3Halves = make_e4m3_halves();

struct Halves {
  // out[0, 64) = the bfloat16 of 64 codes.
  static void from_e4m3(__m512i codes, uint16_t* out) {
    // Quads 0..3 of the codes into the low halves of the 128-bit lanes, 4..7 into the high ones: unpacking puts them
    // back in order.
    codes = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), codes);
    const __m512i low =
        _mm512_permutex2var_epi8(_mm512_load_si512(kE4M3Halves.low), codes, _mm512_load_si512(kE4M3Halves.low + 64));
    __m512i high =
        _mm512_permutex2var_epi8(_mm512_load_si512(kE4M3Halves.high), codes, _mm512_load_si512(kE4M3Halves.high + 64));
    high = _mm512_or_si512(high, _mm512_and_si512(codes, _mm512_set1_epi8((char)0x80)));
    _mm512_storeu_si512(out, _mm512_unpacklo_epi8(low, high));
    _mm512_storeu_si512(out + 32, _mm512_unpackhi_epi8(low, high));
  }
  // out[0, 64) = values [d, d + 64) of the row, zero from `dim` on.
  static void chunk(const void* row, bool e4m3, int64_t d, int64_t dim, uint16_t* out) {
    const int64_t left = dim - d;
    if (e4m3) {
      const __mmask64 mask = left >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << left) - 1;
      return from_e4m3(_mm512_maskz_loadu_epi8(mask, (const uint8_t*)row + d), out);
    }
    const uint16_t* at = (const uint16_t*)row + d;
    for (int64_t i = 0; i < 64; i += 32) {
      const __mmask32 mask = left - i >= 32 ? ~(__mmask32)0 : left - i <= 0 ? 0 : ((__mmask32)1 << (left - i)) - 1;
      _mm512_storeu_si512(out + i, _mm512_maskz_loadu_epi16(mask, mask == 0 ? (const uint16_t*)row : at + i));
    }
  }
  // out[0, padded) of a row; padded is a multiple of 32.
  static void row(const void* from, bool e4m3, int64_t dim, int64_t padded, uint16_t* out) {
    alignas(64) uint16_t last[64];
    for (int64_t d = 0; d < padded; d += 64) {
      if (padded - d >= 64) {
        chunk(from, e4m3, d, dim, out + d);
      } else {
        chunk(from, e4m3, d, dim, last);
        _mm512_storeu_si512(out + d, _mm512_load_si512(last));
      }
    }
  }
  // out[padded / 2][16][2]: pair p of the 16 rows side by side.
  static void pairs(const void* const* rows, bool e4m3, int64_t dim, int64_t padded, uint16_t* out) {
    alignas(64) uint16_t block[16][64];
    int64_t d = 0;
    for (; e4m3 && d + 64 <= dim; d += 64) code_pairs(rows, d, out + d * 16);
    for (; d < padded; d += 64) {
      for (int j = 0; j < 16; ++j) chunk(rows[j], e4m3, d, dim, block[j]);
      for (int64_t half = 0; half < 64 && d + half < padded; half += 32) {
        Vec::Float m[16];
        for (int j = 0; j < 16; ++j) m[j] = _mm512_load_ps((const float*)(block[j] + half));
        Decode::transpose(m);
        float* to = (float*)(out + (d + half) * 16);
        for (int p = 0; p < 16; ++p) _mm512_storeu_ps(to + p * 16, m[p]);
      }
    }
  }

 private:
  // Values [d, d + 64): transposed as codes, four of a row at a time, and looked up where they then lie.
  static void code_pairs(const void* const* rows, int64_t d, uint16_t* out) {
    Vec::Float m[16];
    for (int j = 0; j < 16; ++j) m[j] = _mm512_loadu_ps((const char*)rows[j] + d);
    Decode::transpose(m);
    const __m512i turn = _mm512_load_si512(kTurn.byte);
    for (int quad = 0; quad < 16; ++quad) {
      const __m512i codes = _mm512_permutexvar_epi8(turn, _mm512_castps_si512(m[quad]));
      const __m512i low =
          _mm512_permutex2var_epi8(_mm512_load_si512(kE4M3Halves.low), codes, _mm512_load_si512(kE4M3Halves.low + 64));
      const __m512i most = _mm512_permutex2var_epi8(_mm512_load_si512(kE4M3Halves.high), codes,
                                                    _mm512_load_si512(kE4M3Halves.high + 64));
      const __m512i sign = _mm512_set1_epi8((char)0x80);
      const __m512i high = _mm512_ternarylogic_epi32(sign, codes, most, 0xEA);  // (sign & codes) | most
      _mm512_storeu_si512(out + quad * 64, _mm512_unpacklo_epi8(low, high));
      _mm512_storeu_si512(out + quad * 64 + 32, _mm512_unpackhi_epi8(low, high));
    }
  }

  // Of 16 rows' quads of codes: each row's first two into the low halves of the 128-bit lanes, four rows a lane, the
  // other two into the high ones, from where unpacking by bytes brings them into order.
  struct Turn {
    alignas(64) uint8_t byte[64];
  };
  static constexpr Turn kTurn = [] {
    Turn t{};
    for (int i = 0; i < 32; ++i) {
      const int row = i / 2;
      const int at = i / 8 * 16 + i % 8;
      t.byte[at] = (uint8_t)(4 * row + i % 2);
      t.byte[at + 8] = (uint8_t)(4 * row + 2 + i % 2);
    }
    return t;
  }();
};

}  // namespace
