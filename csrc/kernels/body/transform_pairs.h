#pragma once

// Hadamard and RoPE on bfloat16, 32 elements at a time. Include after kernels/body/{transform,rope}.h and
// kernels/simd/pairs_bf16.h; the same steps in the same order as there, so the same bits.

#include <stdint.h>

namespace {

constexpr int kTogether = 8;  // vectors of 32 elements: so many rows at once that no step waits for the one before

// Sums are multiply-adds by one, differences are differences: the multipliers and the adders share the work.
inline Pair butterfly(Vec::Float a, Vec::Float b, Vec::Float one) { return {Vec::madd(a, one, b), a - b}; }

template <bool within>
inline void regrouped_butterflies(Vec::Float one, Pair (&m)[kTogether]) {
#pragma GCC unroll 8
  for (int i = 0; i < kTogether; ++i) {
    const Pair turned = Pairs::regroup<within>(m[i]);
    m[i] = butterfly(turned.a, turned.b, one);
  }
}

// Rows of vecs * 32 elements after their first butterfly, which takes the elements apart; the following four each
// exchange what tells the two vectors of a pair apart, and after the last one a and b hold 16 neighbours each.
template <int vecs>
inline void hadamard_in_pairs(Vec::Float one, Pair (&m)[kTogether]) {
  regrouped_butterflies<true>(one, m);
  regrouped_butterflies<true>(one, m);
  regrouped_butterflies<false>(one, m);
  regrouped_butterflies<false>(one, m);
#pragma GCC unroll 2
  for (int len = 1; len < vecs; len *= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < kTogether; ++i) {
      if ((i & len) != 0) continue;
      const Pair a = butterfly(m[i].a, m[i + len].a, one);
      const Pair b = butterfly(m[i].b, m[i + len].b, one);
      m[i] = {a.a, b.a};
      m[i + len] = {a.b, b.b};
    }
  }
}

// Which inputs the quick way takes. Sums and differences are multiples of the last place of the least input that is not
// zero, 2^(e - 7), and so at least that themselves or zero: none is subnormal, before or after the scale, where e is
// `exponent` (biased) or greater.
struct QuickInputs {
  explicit QuickInputs(float scale) {
    const int scales = (int)(__builtin_bit_cast(uint32_t, scale) >> 23 & 0xFFU);  // biased too
    const int least = scales == 0 ? 255 : 8 + 127 - scales;
    exponent = least < 8 ? 8U : least > 255 ? 255U : (uint32_t)least;
    uint32_t power = 8;
    while (power < exponent) power *= 2;
    mask = 0x7F80U & ~((power - 1) << 7);
  }
  uint32_t twice_least() const { return exponent << 8; }  // twice a bfloat16's bits, which leaves out the sign

  uint32_t exponent;
  uint32_t mask;  // bits of which every bfloat16 of a sufficient exponent has one; no zero has
};

// The rows of a group in registers, after their first butterfly; whether all of them may take the quick way.
template <int vecs>
inline bool first_butterflies(const char* in, int64_t step, const QuickInputs& quick, Pair (&m)[kTogether]) {
  const __m512i mask = _mm512_set1_epi16((short)quick.mask);
  __mmask32 plain = 0xFFFFFFFFU;
#pragma GCC unroll 8
  for (int i = 0; i < kTogether; ++i) {
    const __m512i x = _mm512_loadu_si512(in + i / vecs * step + i % vecs * 64);
    m[i] = Pairs::butterflies(x);
    plain = _mm512_mask_test_epi16_mask(plain, x, mask);
  }
  if (__builtin_expect(plain == 0xFFFFFFFFU, 1)) return true;
  bool tiny = false;
  for (int i = 0; i < kTogether; i += vecs) {
    tiny |= Pairs::any_below<vecs>(in + i / vecs * step, quick.twice_least());
  }
  return !tiny;
}

// A group of rows; false, and nothing written, where one of them has to go the long way.
template <int vecs, bool scaled, class Put>
inline bool hadamard_group(const char* in, int64_t step, float factor, const QuickInputs& quick, const Put& put) {
  Vec::Float one = Vec::broadcast(1.0F);
  asm("" : "+v"(one));  // else the compiler sees that multiplying by it could be left out
  const Vec::Float scale = Vec::broadcast(factor);
  Pair m[kTogether];
  if (!first_butterflies<vecs>(in, step, quick, m)) return false;
  hadamard_in_pairs<vecs>(one, m);
#pragma GCC unroll 8
  for (int i = 0; i < kTogether; ++i) {
    put(i, Pairs::rounded(scaled ? Pair{m[i].a * scale, m[i].b * scale} : m[i]));
  }
  return true;
}

// Rows each for itself, so that the way a row goes (of which several NaN may remain different ones) does not depend on
// its neighbours: a group of the same row again and again.
template <int vecs, bool scaled>
__attribute__((noinline, cold)) void hadamard_one_by_one(const HadamardRows& p, const QuickInputs& quick, int64_t first,
                                                         int64_t last) {
  for (int64_t row = first; row < last; ++row) {
    HadamardRows alone = p;
    alone.in = (const char*)p.in + row * p.in_stride * Bf16::kBytes;
    alone.out = (char*)p.out + row * p.out_stride * Bf16::kBytes;
    alone.rows = 1;
    const auto put = [&](int i, __m512i v) { Pairs::store<false>((char*)alone.out + i % vecs * 64, v); };
    if (!hadamard_group<vecs, scaled>((const char*)alone.in, 0, p.scale, quick, put)) {
      hadamard_in_registers<Bf16, false, 2 * vecs>(alone);
    }
  }
}

template <int vecs, bool scaled, bool stream>
void hadamard_pairs_of(const HadamardRows& p) {
  constexpr int kRows = kTogether / vecs;
  const QuickInputs quick(p.scale);
  const int64_t in_step = p.in_stride * Bf16::kBytes;
  const int64_t out_step = p.out_stride * Bf16::kBytes;
  Lines lines((char*)p.out);
  int64_t row = 0;
  for (; row + kRows <= p.rows; row += kRows) {
    char* out = (char*)p.out + row * out_step;
    const auto put = [&](int i, __m512i v) {
      if (stream) {
        lines.put(v);
      } else {
        Pairs::store<false>(out + i / vecs * out_step + i % vecs * 64, v);
      }
    };
    if (hadamard_group<vecs, scaled>((const char*)p.in + row * in_step, in_step, p.scale, quick, put)) continue;
    if (stream) lines.finish();
    hadamard_one_by_one<vecs, scaled>(p, quick, row, row + kRows);
    if (stream) lines = Lines(out + kRows * out_step);
  }
  if (stream) lines.finish();
  hadamard_one_by_one<vecs, scaled>(p, quick, row, p.rows);
}

template <int vecs>
void hadamard_pairs_as(const HadamardRows& p) {
  const bool stream = p.out_stride == vecs * 32 && can_stream(p.stream, p.out, 0);
  if (p.scale == 1.0F) {
    stream ? hadamard_pairs_of<vecs, false, true>(p) : hadamard_pairs_of<vecs, false, false>(p);
  } else {
    stream ? hadamard_pairs_of<vecs, true, true>(p) : hadamard_pairs_of<vecs, true, false>(p);
  }
  if (stream) Store::fence();
}

void hadamard_pairs(const HadamardRows& p) noexcept {
  if (!p.bfloat16) return hadamard(p);
  switch (p.n) {
    case 32: return hadamard_pairs_as<1>(p);
    case 64: return hadamard_pairs_as<2>(p);
    case 128: return hadamard_pairs_as<4>(p);
    default: return hadamard(p);
  }
}

template <bool stream>
inline void store_turned(char* out, Pair m) {
  const __m512i halves = __builtin_expect(Pairs::subnormal(m) != 0, 0) ? Pairs::rounded_slowly(m) : Pairs::rounded(m);
  Pairs::store<stream>(out, Pairs::interleaved(halves));
}

// Heads of kVecs * 32 elements; sines and cosines stay in registers.
template <int kVecs, bool stream>
void interleaved_pairs(const RopeHeads& p) {
  Vec::Float c[kVecs];
  Vec::Float s[kVecs];
  for (int i = 0; i < kVecs; ++i) {
    c[i] = Vec::load(p.table + 16 * i);
    s[i] = Vec::load(p.table + p.half + 16 * i);
  }
  for (int64_t h = 0; h < p.heads; ++h) {
    const char* in = (const char*)p.in + h * p.in_stride * Bf16::kBytes;
    char* out = (char*)p.out + h * p.out_stride * Bf16::kBytes;
    for (int i = 0; i < kVecs; ++i) {
      const Pair x = Pairs::load(in + 64 * i);
      store_turned<stream>(out + 64 * i, {x.a * c[i] - x.b * s[i], x.a * s[i] + x.b * c[i]});
    }
  }
}

// The same with pairs (i, i + half): even and odd i apart.
template <int kVecs, bool stream>
void half_split_pairs(const RopeHeads& p) {
  constexpr int kHalf = kVecs / 2;
  Pair c[kHalf];
  Pair s[kHalf];
  for (int i = 0; i < kHalf; ++i) {
    c[i] = Pairs::load_float32(p.table + 32 * i);
    s[i] = Pairs::load_float32(p.table + p.half + 32 * i);
  }
  for (int64_t h = 0; h < p.heads; ++h) {
    const char* in = (const char*)p.in + h * p.in_stride * Bf16::kBytes;
    char* out = (char*)p.out + h * p.out_stride * Bf16::kBytes;
    for (int i = 0; i < kHalf; ++i) {
      const Pair x = Pairs::load(in + 64 * i);
      const Pair y = Pairs::load(in + 64 * (i + kHalf));
      store_turned<stream>(out + 64 * i, {x.a * c[i].a - y.a * s[i].a, x.b * c[i].b - y.b * s[i].b});
      store_turned<stream>(out + 64 * (i + kHalf), {x.a * s[i].a + y.a * c[i].a, x.b * s[i].b + y.b * c[i].b});
    }
  }
}

inline bool rope_streams(const RopeHeads& p) { return can_stream(p.stream, p.out, p.out_stride * Bf16::kBytes); }

void rope_interleaved_pairs(const RopeHeads& p) noexcept {
  if (!p.bfloat16 || p.half != 32) return rope_interleaved(p);
  rope_streams(p) ? interleaved_pairs<2, true>(p) : interleaved_pairs<2, false>(p);
}

void rope_half_split_pairs(const RopeHeads& p) noexcept {
  if (!p.bfloat16 || p.half != 32) return rope_half_split(p);
  rope_streams(p) ? half_split_pairs<2, true>(p) : half_split_pairs<2, false>(p);
}

}  // namespace
