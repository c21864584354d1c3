#pragma once

// Include after kernels/body/element.h, inside one translation unit per ISA level.

#include <stdint.h>

namespace {

using sparsespan::kMergeChunk;
using sparsespan::MergeRow;

constexpr int kMergeVecs = kMergeChunk / Vec::kLanes;

// A value of some chunk, in memory as it came or in scratch.
template <class E>
struct Chunk {
  const char* p;
  Vec::Float operator()(int i) const { return E::load(p + i * Vec::kLanes * E::kBytes); }
};

// put(i, a * w[0] + b * w[1]) for the vectors i of a chunk.
template <class A, class B, class Put>
inline void mix_chunk(const A& a, const B& b, const float* w, int vecs, const Put& put) {
  const Vec::Float wa = Vec::broadcast(w[0]);
  const Vec::Float wb = Vec::broadcast(w[1]);
  if (w[0] != 0.0F && w[1] != 0.0F) {
    for (int i = 0; i < vecs; ++i) put(i, a(i) * wa + b(i) * wb);
  } else if (w[0] != 0.0F) {
    for (int i = 0; i < vecs; ++i) put(i, a(i) * wa);
  } else if (w[1] != 0.0F) {
    for (int i = 0; i < vecs; ++i) put(i, b(i) * wb);
  } else {
    for (int i = 0; i < vecs; ++i) put(i, Vec::zero());
  }
}

// All rounds of one chunk; the last one goes to put.
template <class E, class Put>
inline void merge_chunk(const MergeRow& p, const char* outs, int vecs, const Put& put) {
  const int64_t step = p.leaf_stride * E::kBytes;
  if (p.n == 1) {
    for (int i = 0; i < vecs; ++i) put(i, Chunk<E>{outs}(i));
    return;
  }
  const float* w = p.weights;
  int64_t live = p.n;
  int64_t stride = 1;
  while (2 * stride < p.n) stride *= 2;
  const auto held = [&](int64_t i) { return p.scratch + i * kMergeChunk; };
  for (bool leaves = true; stride > 0; leaves = false, live = stride, stride /= 2) {
    for (int64_t i = 0; i < stride; ++i) {
      const auto keep = [&](int v, Vec::Float value) { Vec::store(held(i) + v * Vec::kLanes, value); };
      if (i + stride >= live) {
        for (int v = 0; leaves && v < vecs; ++v) keep(v, Chunk<E>{outs + i * step}(v));
        continue;
      }
      const Chunk<E> leaf_a = {outs + i * step};
      const Chunk<E> leaf_b = {outs + (i + stride) * step};
      const Chunk<F32> a = {(const char*)held(i)};
      const Chunk<F32> b = {(const char*)held(i + stride)};
      if (leaves && stride > 1) {
        mix_chunk(leaf_a, leaf_b, w, vecs, keep);
      } else if (leaves) {
        mix_chunk(leaf_a, leaf_b, w, vecs, put);
      } else if (stride > 1) {
        mix_chunk(a, b, w, vecs, keep);
      } else {
        mix_chunk(a, b, w, vecs, put);
      }
      w += 2;
    }
  }
}

// What stands at place i before the round of `stride`, of n leaves (a power of two), vector by vector and in registers;
// no weight is 0. w: [n - 1][2] in the order of the rounds, the one of n / 2 first.
template <class E, int n, int stride>
inline Vec::Float merged(const char* leaves, int64_t step, const Vec::Float* w, int i) {
  if constexpr (stride == n) {
    return E::load(leaves + i * step);
  } else {
    const Vec::Float* mine = w + 2 * (n - 2 * stride + i);
    return merged<E, n, 2 * stride>(leaves, step, w, i) * mine[0] +
           merged<E, n, 2 * stride>(leaves, step, w, i + stride) * mine[1];
  }
}

template <class E, class Out, bool stream, int n>
void merge_tree(const MergeRow& p) {
  Vec::Float w[2 * (n - 1)];
  for (int i = 0; i < 2 * (n - 1); ++i) w[i] = Vec::broadcast(p.weights[i]);
  const Vec::Float factor = Vec::broadcast(p.factor);
  const int64_t step = p.leaf_stride * E::kBytes;
  const char* outs = (const char*)p.outs;
  char* out = (char*)p.out;
  for (int64_t d = 0; d + Vec::kLanes <= p.width; d += Vec::kLanes) {
    const Vec::Float value = merged<E, n, 1>(outs + d * E::kBytes, step, w, 0);
    Out::template store<stream>(out + d * Out::kBytes, p.scaled ? value * factor : value);
  }
}

inline bool all_weigh(const MergeRow& p) {
  for (int64_t i = 0; i < 2 * (p.n - 1); ++i) {
    if (p.weights[i] == 0.0F) return false;
  }
  return true;
}

template <class E, class Out, bool stream>
void merge_row(const MergeRow& p) {
  if (p.n == 2 && all_weigh(p)) return merge_tree<E, Out, stream, 2>(p);
  if (p.n == 4 && all_weigh(p)) return merge_tree<E, Out, stream, 4>(p);
  if (p.n == 8 && all_weigh(p)) return merge_tree<E, Out, stream, 8>(p);
  const Vec::Float factor = Vec::broadcast(p.factor);
  int64_t d = 0;
  const auto run = [&](const char* outs, char* out, int vecs) {
    if (p.scaled) {
      merge_chunk<E>(p, outs, vecs, [&](int v, Vec::Float value) {
        Out::template store<stream>(out + v * Vec::kLanes * Out::kBytes, value * factor);
      });
    } else {
      merge_chunk<E>(p, outs, vecs, [&](int v, Vec::Float value) {
        Out::template store<stream>(out + v * Vec::kLanes * Out::kBytes, value);
      });
    }
  };
  const char* outs = (const char*)p.outs;
  char* out = (char*)p.out;
  for (; d + kMergeChunk <= p.width; d += kMergeChunk) run(outs + d * E::kBytes, out + d * Out::kBytes, kMergeVecs);
  for (; d + Vec::kLanes <= p.width; d += Vec::kLanes) run(outs + d * E::kBytes, out + d * Out::kBytes, 1);
}

// What is left of a row that is no multiple of a vector: the same steps on a copy.
template <class E, class Out>
void merge_rest(const MergeRow& p) {
  const int64_t whole = p.width / Vec::kLanes * Vec::kLanes;
  for (int64_t d = whole; d < p.width; ++d) {
    int64_t stride = 1;
    while (2 * stride < p.n) stride *= 2;
    for (int64_t i = 0; i < p.n; ++i) p.scratch[i] = E::get((const char*)p.outs + (i * p.leaf_stride + d) * E::kBytes);
    const float* w = p.weights;
    for (int64_t live = p.n; live > 1; live = stride, stride /= 2) {
      for (int64_t i = 0; i < stride && i + stride < live; ++i, w += 2) {
        const float a = w[0] != 0.0F ? p.scratch[i] * w[0] : 0.0F;
        const float b = w[1] != 0.0F ? p.scratch[i + stride] * w[1] : 0.0F;
        p.scratch[i] = w[0] == 0.0F ? b : w[1] == 0.0F ? a : a + b;
      }
    }
    Out::put((char*)p.out + d * Out::kBytes, p.scaled ? p.scratch[0] * p.factor : p.scratch[0]);
  }
}

template <class E, class Out>
void merge_as(const MergeRow& p) {
  if (can_stream(p.stream, p.out, 0)) {
    merge_row<E, Out, true>(p);
  } else {
    merge_row<E, Out, false>(p);
  }
  if (p.width % Vec::kLanes != 0) merge_rest<E, Out>(p);
}

void merge(const MergeRow& p) noexcept {
  if (p.bfloat16) {
    p.out_bfloat16 ? merge_as<Bf16, Bf16>(p) : merge_as<Bf16, F32>(p);
  } else {
    p.out_bfloat16 ? merge_as<F32, Bf16>(p) : merge_as<F32, F32>(p);
  }
}

void fence() noexcept { Store::fence(); }

}  // namespace
