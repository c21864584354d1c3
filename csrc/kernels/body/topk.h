#pragma once

// Include after kernels/simd/{vec,filter}_<isa>.h, inside one translation unit per ISA level.

#include <stdint.h>
#include <string.h>

namespace {

struct Collected {
  uint32_t floor;
  uint32_t* keys;
  int32_t* indices;
  int64_t count;
  int64_t ties;  // keys equal to `floor` so far
  int64_t nan;

  // In integers, so that neither subnormals nor the caller's rounding modes matter. Always stores, sometimes counts.
  void offer(float score, int64_t index) {
    uint32_t bits;
    memcpy(&bits, &score, sizeof bits);
    if ((bits & 0x7FFFFFFFU) > 0x7F800000U) {
      if (nan < 0) nan = index;
      bits = 0xFFFFFFFEU;  // becomes 1
    }
    if (bits == 0x80000000U) bits = 0;
    const uint32_t key = bits ^ ((uint32_t)((int32_t)bits >> 31) | 0x80000000U);
    keys[count] = key;
    indices[count] = (int32_t)index;
    count += key >= floor ? 1 : 0;
    ties += key == floor ? 1 : 0;
  }
};

// The value whose key is `floor`: what is below it in floats is below it in keys.
inline float value_of_key(uint32_t key) {
  const uint32_t bits = (key & 0x80000000U) != 0 ? key ^ 0x80000000U : ~key;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// The places of `mask`, from scores[i] on. A template, as others here, because not every level has all of F.
template <class F>
inline void offer_all(Collected& out, const float* scores, int64_t i, uint32_t mask, int32_t first_index) {
  if constexpr (F::kAppends) {
    const auto first = (int32_t)(first_index + i);
    const auto more = F::append(scores + i, mask, out.floor, first, out.keys + out.count, out.indices + out.count);
    if (more.nan != 0 && out.nan < 0) out.nan = first + __builtin_ctz(more.nan);
    out.count += more.count;
    out.ties += more.ties;
  } else {
    for (; mask != 0; mask &= mask - 1) {
      const int64_t j = i + __builtin_ctz(mask);
      out.offer(scores[j], first_index + j);
    }
  }
}

int64_t collect(const float* scores, int64_t n, uint32_t floor, int64_t most_ties, int32_t first_index, uint32_t* keys,
                int32_t* indices, int64_t* nan) noexcept {
  Collected out = {floor, keys, indices, 0, 0, -1};
  int64_t i = 0;
  if (floor > 1) {
    Vec::Float low = Vec::broadcast(value_of_key(floor));
    for (; i + Filter::kStep <= n; i += Filter::kStep) {
      const uint32_t mask = Filter::not_below(scores + i, low);
      if (mask == 0) continue;
      if (out.ties >= most_ties) {  // from here on only what is above
        out.floor = floor + 1;
        out.ties = 0;
        most_ties = INT64_MAX;
        low = Vec::broadcast(value_of_key(out.floor));
      }
      offer_all<Filter>(out, scores, i, mask, first_index);
    }
  } else if (Filter::kAppends) {
    for (; i + Filter::kStep <= n; i += Filter::kStep) offer_all<Filter>(out, scores, i, 0xFFFFU, first_index);
  }
  for (; i < n; ++i) out.offer(scores[i], first_index + i);
  if (out.nan >= 0) *nan = out.nan;
  return out.count;
}

template <class F>
sparsespan::KeyRange key_range(const uint32_t* keys, int64_t n, uint32_t floor) noexcept {
  uint32_t least = 0xFFFFFFFFU;  // above the floor; what is below it wraps around
  uint32_t greatest = floor;
  int64_t i = 0;
  if (n >= F::kStep) {
    const typename F::Keys floors = F::broadcast(floor);
    typename F::Keys low = F::broadcast(least);
    typename F::Keys high = floors;
    for (; i + F::kStep <= n; i += F::kStep) {
      const typename F::Keys key = F::load(keys + i);
      low = F::lesser(low, F::minus(key, floors));
      high = F::greater(high, key);
    }
    uint32_t lows[F::kStep];
    uint32_t highs[F::kStep];
    F::store_all(lows, low);
    F::store_all(highs, high);
    for (int j = 0; j < F::kStep; ++j) {
      least = lows[j] < least ? lows[j] : least;
      greatest = highs[j] > greatest ? highs[j] : greatest;
    }
  }
  for (; i < n; ++i) {
    least = keys[i] - floor < least ? keys[i] - floor : least;
    greatest = keys[i] > greatest ? keys[i] : greatest;
  }
  return {least + floor, greatest};
}

template <class F>
int64_t count_keys(const uint32_t* keys, int64_t n, uint32_t key) noexcept {
  const typename F::Keys least = F::broadcast(key);
  int64_t count = 0;
  int64_t i = 0;
  for (; i + F::kStep <= n; i += F::kStep) count += F::count_at_least(keys + i, least);
  for (; i < n; ++i) count += keys[i] >= key ? 1 : 0;
  return count;
}

template <class F>
int64_t keep(uint32_t* keys, int32_t* indices, int64_t n, uint32_t cut, int64_t ties) noexcept {
  int64_t kept = 0;
  if constexpr (F::kAppends) {
    for (int64_t i = 0; i < n; i += F::kStep) {
      const int64_t left = n - i < F::kStep ? n - i : F::kStep;
      kept += F::keep(keys + i, indices + i, (int)left, cut, &ties, keys + kept, indices + kept);
    }
    return kept;
  }
  for (int64_t i = 0; i < n; ++i) {  // always stores, sometimes counts
    const uint32_t key = keys[i];
    const bool tie = key == cut && ties > 0;
    keys[kept] = key;
    indices[kept] = indices[i];
    kept += key > cut || tie ? 1 : 0;
    ties -= tie ? 1 : 0;
  }
  return kept;
}

template <class F>
constexpr sparsespan::TopkKernels make_table() {
  sparsespan::TopkKernels table = {.collect = collect, .range = nullptr, .count_at_least = nullptr, .keep = keep<F>};
  if constexpr (F::kKeys) {
    table.range = key_range<F>;
    table.count_at_least = count_keys<F>;
  }
  return table;
}

constexpr sparsespan::TopkKernels kTable = make_table<Filter>();

}  // namespace
