#pragma once

// Include after kernels/body/element.h and kernels/simd/butterfly_<isa>.h, inside one translation unit per ISA level.
//
// The butterflies are those of len = 1, 2, 4, ..., each with one rounding, whatever the width of the vectors: the bits
// are the same at every level.

#include <stdint.h>

namespace {

using sparsespan::HadamardRows;

constexpr int kHadamardVecs = 8;  // held in registers
constexpr int64_t kHadamardBlock = int64_t{kHadamardVecs} * Vec::kLanes;

inline Vec::Float hadamard_within(Vec::Float v) {
  v = Butterfly::step<1>(v);
  v = Butterfly::step<2>(v);
  if (Vec::kLanes > 4) v = Butterfly::step<4>(v);
  if (Vec::kLanes > 8) v = Butterfly::step<8>(v);
  return v;
}

// vecs vectors, transformed as one block.
template <class E, int vecs>
inline void hadamard_block(const char* in, Vec::Float (&m)[vecs]) {
#pragma GCC unroll 8
  for (int i = 0; i < vecs; ++i) m[i] = hadamard_within(E::load(in + i * Vec::kLanes * E::kBytes));
#pragma GCC unroll 3
  for (int len = 1; len < vecs; len *= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < vecs; ++i) {
      if ((i & len) != 0) continue;
      const Vec::Float a = m[i];
      const Vec::Float b = m[i + len];
      m[i] = a + b;
      m[i + len] = a - b;
    }
  }
}

template <class E, bool stream, int vecs>
void hadamard_in_registers(const HadamardRows& p) {
  const Vec::Float scale = Vec::broadcast(p.scale);
  for (int64_t row = 0; row < p.rows; ++row) {
    Vec::Float m[vecs];
    hadamard_block<E, vecs>((const char*)p.in + row * p.in_stride * E::kBytes, m);
    char* out = (char*)p.out + row * p.out_stride * E::kBytes;
#pragma GCC unroll 8
    for (int i = 0; i < vecs; ++i) E::template store<stream>(out + i * Vec::kLanes * E::kBytes, m[i] * scale);
  }
}

// Rows shorter than a vector.
template <class E>
void hadamard_short(const HadamardRows& p) {
  for (int64_t row = 0; row < p.rows; ++row) {
    float data[Vec::kLanes];
    for (int64_t j = 0; j < p.n; ++j) data[j] = E::get((const char*)p.in + (row * p.in_stride + j) * E::kBytes);
    for (int64_t len = 1; len < p.n; len *= 2) {
      for (int64_t j = 0; j < p.n; ++j) {
        if ((j & len) != 0) continue;
        const float a = data[j];
        const float b = data[j + len];
        data[j] = a + b;
        data[j + len] = a - b;
      }
    }
    for (int64_t j = 0; j < p.n; ++j) E::put((char*)p.out + (row * p.out_stride + j) * E::kBytes, data[j] * p.scale);
  }
}

// Rows longer than what registers hold: blocks first, then the wide steps in scratch, the last one on its way out.
template <class E, bool stream>
void hadamard_long(const HadamardRows& p) {
  const Vec::Float scale = Vec::broadcast(p.scale);
  float* data = p.scratch;
  for (int64_t row = 0; row < p.rows; ++row) {
    for (int64_t block = 0; block < p.n; block += kHadamardBlock) {
      Vec::Float m[kHadamardVecs];
      hadamard_block<E, kHadamardVecs>((const char*)p.in + (row * p.in_stride + block) * E::kBytes, m);
      for (int i = 0; i < kHadamardVecs; ++i) Vec::store(data + block + i * Vec::kLanes, m[i]);
    }
    int64_t len = kHadamardBlock;
    for (; 2 * len < p.n; len *= 2) {
      for (int64_t j = 0; j < p.n; j = (j & len) != 0 ? j + len : j) {
        for (const int64_t end = j + len; j < end; j += Vec::kLanes) {
          const Vec::Float a = Vec::load(data + j);
          const Vec::Float b = Vec::load(data + j + len);
          Vec::store(data + j, a + b);
          Vec::store(data + j + len, a - b);
        }
      }
    }
    char* out = (char*)p.out + row * p.out_stride * E::kBytes;
    for (int64_t j = 0; j < len; j += Vec::kLanes) {
      const Vec::Float a = Vec::load(data + j);
      const Vec::Float b = Vec::load(data + j + len);
      E::template store<stream>(out + j * E::kBytes, (a + b) * scale);
      E::template store<stream>(out + (j + len) * E::kBytes, (a - b) * scale);
    }
  }
}

template <class E, bool stream>
void hadamard_of(const HadamardRows& p) {
  if (p.n < Vec::kLanes) return hadamard_short<E>(p);
  switch (p.n / Vec::kLanes) {
    case 1: return hadamard_in_registers<E, stream, 1>(p);
    case 2: return hadamard_in_registers<E, stream, 2>(p);
    case 4: return hadamard_in_registers<E, stream, 4>(p);
    case 8: return hadamard_in_registers<E, stream, 8>(p);
    default: return hadamard_long<E, stream>(p);
  }
}

void hadamard(const HadamardRows& p) noexcept {
  const bool stream = can_stream(p.stream, p.out, p.out_stride * (p.bfloat16 ? Bf16::kBytes : F32::kBytes));
  if (stream) {
    p.bfloat16 ? hadamard_of<Bf16, true>(p) : hadamard_of<F32, true>(p);
    Store::fence();
  } else {
    p.bfloat16 ? hadamard_of<Bf16, false>(p) : hadamard_of<F32, false>(p);
  }
}

}  // namespace
