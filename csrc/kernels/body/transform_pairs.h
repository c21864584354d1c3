#pragma once

// Hadamard and RoPE on bfloat16, 32 elements at a time. Include after kernels/body/{transform,rope}.h and
// kernels/simd/pairs_bf16.h; the same steps in the same order as there, so the same bits.

#include <stdint.h>

namespace {

inline Pair butterfly(Pair m, Vec::Float one) { return {Vec::madd(m.a, one, m.b), m.a - m.b}; }

// kPairs * 32 elements in registers. Even and odd places come apart for nothing when they are widened, which is the
// first butterfly; the following four each exchange what tells the two vectors of a pair apart, and after the last one
// a and b hold 16 neighbours each. Sums are multiply-adds by one, differences are differences: the multipliers and the
// adders share the work.
template <int kPairs>
inline void hadamard_in_pairs(const char* in, Vec::Float one, Pair (&m)[kPairs]) {
#pragma GCC unroll 4
  for (int i = 0; i < kPairs; ++i) m[i] = butterfly(Pairs::load(in + 64 * i), one);
#pragma GCC unroll 4
  for (int i = 0; i < kPairs; ++i) m[i] = butterfly(Pairs::regroup<2>(m[i]), one);
#pragma GCC unroll 4
  for (int i = 0; i < kPairs; ++i) m[i] = butterfly(Pairs::regroup<4>(m[i]), one);
#pragma GCC unroll 4
  for (int i = 0; i < kPairs; ++i) m[i] = butterfly(Pairs::regroup<8>(m[i]), one);
#pragma GCC unroll 4
  for (int i = 0; i < kPairs; ++i) m[i] = butterfly(Pairs::regroup<16>(m[i]), one);
#pragma GCC unroll 2
  for (int len = 1; len < kPairs; len *= 2) {
#pragma GCC unroll 4
    for (int i = 0; i < kPairs; ++i) {
      if ((i & len) != 0) continue;
      const Pair a = butterfly({m[i].a, m[i + len].a}, one);
      const Pair b = butterfly({m[i].b, m[i + len].b}, one);
      m[i] = {a.a, b.a};
      m[i + len] = {a.b, b.b};
    }
  }
}

// Sums and differences are multiples of the last place of the least input that is not zero, 2^(e - 7), and so at least
// that themselves or zero: times the scale none is subnormal where e is this exponent or greater. Twice the bits of a
// bfloat16 with it, which lie in 16 bits without the sign; more than 0xFF00 where no input will do.
inline uint32_t least_input(float scale) {
  const int exponent = (int)(__builtin_bit_cast(uint32_t, scale) >> 23 & 0xFFU);  // both biased
  const int least = exponent == 0 ? 255 : 8 + 127 - exponent;
  return least < 1 ? 0x100U : least > 254 ? 0xFFFFU : (uint32_t)least << 8;
}

template <int kPairs, bool stream>
void hadamard_pairs_of(const HadamardRows& p) {
  const Vec::Float scale = Vec::broadcast(p.scale);
  const uint32_t least = least_input(p.scale);
  Vec::Float one = Vec::broadcast(1.0F);
  asm("" : "+v"(one));  // else the compiler sees that multiplying by it could be left out
  for (int64_t row = 0; row < p.rows; ++row) {
    const char* in = (const char*)p.in + row * p.in_stride * Bf16::kBytes;
    char* out = (char*)p.out + row * p.out_stride * Bf16::kBytes;
    Pair m[kPairs];
    hadamard_in_pairs<kPairs>(in, one, m);
    if (__builtin_expect(Pairs::any_below<kPairs>(in, least), 0)) {
      for (int i = 0; i < kPairs; ++i) {
        Pairs::store<stream>(out + 64 * i, Pairs::rounded_slowly({m[i].a * scale, m[i].b * scale}));
      }
      continue;
    }
#pragma GCC unroll 4
    for (int i = 0; i < kPairs; ++i) {
      Pairs::store<stream>(out + 64 * i, Pairs::rounded({m[i].a * scale, m[i].b * scale}));
    }
  }
}

template <bool stream>
bool hadamard_short_rows(const HadamardRows& p) {
  switch (p.n) {
    case 32: return hadamard_pairs_of<1, stream>(p), true;
    case 64: return hadamard_pairs_of<2, stream>(p), true;
    case 128: return hadamard_pairs_of<4, stream>(p), true;
    default: return false;
  }
}

void hadamard_pairs(const HadamardRows& p) noexcept {
  if (!p.bfloat16) return hadamard(p);
  if (can_stream(p.stream, p.out, p.out_stride * Bf16::kBytes)) {
    if (!hadamard_short_rows<true>(p)) return hadamard(p);
    Store::fence();
  } else if (!hadamard_short_rows<false>(p)) {
    hadamard(p);
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
