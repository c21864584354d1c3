#pragma once

// Include after kernels/simd/{vec,decode}_<isa>.h, inside one translation unit per ISA level.

#include <stdint.h>
#include <string.h>

namespace {

using sparsespan::Narrow;

// The register tile: heads x vectors of keys. 8 x 3 of 32 wide registers; 4 x 3 of 16 with fused multiply-add; 2 x 4 of
// 16 narrow ones, where each multiply needs a copy of its factor besides.
constexpr int kTileHeads = Vec::kLanes == 16 ? 8 : Vec::kLanes == 8 ? 4 : 2;
constexpr int kTileVecs = Vec::kLanes == 4 ? 4 : 3;
constexpr int kPanelKeys = kTileVecs * Vec::kLanes;

template <Narrow type>
struct Element {
  static constexpr int64_t kBytes = type == Narrow::float32 ? 4 : type == Narrow::bfloat16 ? 2 : 1;

  static Vec::Float load(const void* row, int64_t d, const float* table) {
    const char* p = (const char*)row + d * kBytes;
    if constexpr (type == Narrow::float32) {
      return Decode::load_float32(p);
    } else if constexpr (type == Narrow::bfloat16) {
      return Decode::load_bfloat16(p);
    } else {
      return Decode::load_e4m3(p, table);
    }
  }
  static float one(const void* row, int64_t d, const float* table) {
    const char* p = (const char*)row + d * kBytes;
    if constexpr (type == Narrow::e4m3) {
      return table[(uint8_t)*p];
    } else {  // little endian: the first kBytes bytes are the low ones
      uint32_t bits = 0;
      memcpy(&bits, p, kBytes);
      if constexpr (type == Narrow::bfloat16) bits <<= 16;
      float value;
      memcpy(&value, &bits, sizeof value);
      return value;
    }
  }
};

int64_t query_floats(int64_t heads, int64_t dim) noexcept { return heads * dim; }

int64_t panel_floats(int64_t /*heads*/, int64_t dim) noexcept { return dim * kPanelKeys; }

template <Narrow type>
void decode_as(const void* row, const float* table, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + Vec::kLanes <= n; i += Vec::kLanes) Vec::store(out + i, Element<type>::load(row, i, table));
  for (; i < n; ++i) out[i] = Element<type>::one(row, i, table);
}

void decode(const void* row, Narrow type, const float* table, int64_t n, float* out) noexcept {
  switch (type) {
    case Narrow::float32: return decode_as<Narrow::float32>(row, table, n, out);
    case Narrow::bfloat16: return decode_as<Narrow::bfloat16>(row, table, n, out);
    case Narrow::e4m3: return decode_as<Narrow::e4m3>(row, table, n, out);
  }
}

// packed[h][d]
void pack_query(const void* q, int64_t head_bytes, Narrow type, const float* table, int64_t heads, int64_t dim,
                bool /*few*/, float* packed) noexcept {
  for (int64_t h = 0; h < heads; ++h) decode((const char*)q + h * head_bytes, type, table, dim, packed + h * dim);
}

template <Narrow type>
void pack_as(const void* const* rows, const float* table, int64_t dim, float* panel) {
  for (int first = 0; first < kPanelKeys; first += Vec::kLanes) {
    int64_t d = 0;
    for (; d + Vec::kLanes <= dim; d += Vec::kLanes) {
      Vec::Float block[Vec::kLanes];
      for (int j = 0; j < Vec::kLanes; ++j) block[j] = Element<type>::load(rows[first + j], d, table);
      Decode::transpose(block);
      for (int i = 0; i < Vec::kLanes; ++i) Vec::store(panel + (d + i) * kPanelKeys + first, block[i]);
    }
    for (; d < dim; ++d) {
      for (int j = 0; j < Vec::kLanes; ++j) {
        panel[d * kPanelKeys + first + j] = Element<type>::one(rows[first + j], d, table);
      }
    }
  }
}

// panel[d][j]
void pack(const void* const* rows, Narrow type, const float* table, int64_t dim, bool /*few*/, float* panel) noexcept {
  switch (type) {
    case Narrow::float32: return pack_as<Narrow::float32>(rows, table, dim, panel);
    case Narrow::bfloat16: return pack_as<Narrow::bfloat16>(rows, table, dim, panel);
    case Narrow::e4m3: return pack_as<Narrow::e4m3>(rows, table, dim, panel);
  }
}

// sum[v] += relu(q[h] . key) * weights[h] for the next kHeads heads.
template <int kHeads>
inline void score_heads(const float* q, const float* weights, int64_t dim, const float* panel,
                        Vec::Float (&sum)[kTileVecs]) {
  Vec::Float dot[kHeads][kTileVecs];
  for (int h = 0; h < kHeads; ++h) {
    for (int v = 0; v < kTileVecs; ++v) dot[h][v] = Vec::zero();
  }
  for (int64_t d = 0; d < dim; ++d, panel += kPanelKeys) {
    Vec::Float key[kTileVecs];
    for (int v = 0; v < kTileVecs; ++v) key[v] = Vec::load(panel + v * Vec::kLanes);
    for (int h = 0; h < kHeads; ++h) {
      const Vec::Float x = Vec::broadcast(q[h * dim + d]);
      for (int v = 0; v < kTileVecs; ++v) dot[h][v] = Vec::madd(key[v], x, dot[h][v]);
    }
  }
  for (int h = 0; h < kHeads; ++h) {
    const Vec::Float w = Vec::broadcast(weights[h]);
    for (int v = 0; v < kTileVecs; ++v) sum[v] = Vec::madd(Vec::relu(dot[h][v]), w, sum[v]);
  }
}

// What is left after the full tiles, in halves: 4, 2, 1.
template <int kHeads>
inline void score_rest(const float* q, const float* weights, int64_t heads, int64_t dim, const float* panel,
                       Vec::Float (&sum)[kTileVecs]) {
  if (heads >= kHeads) {
    score_heads<kHeads>(q, weights, dim, panel, sum);
    q += kHeads * dim;
    weights += kHeads;
    heads -= kHeads;
  }
  if constexpr (kHeads > 1) score_rest<kHeads / 2>(q, weights, heads, dim, panel, sum);
}

// One chain of multiply-adds over d ascending and one over h ascending.
void score(const float* q, const float* weights, int64_t heads, int64_t dim, float* panel, bool /*few*/,
           const float* scale, int /*begin*/, int /*end*/, float* scores) noexcept {
  Vec::Float sum[kTileVecs];
  for (int v = 0; v < kTileVecs; ++v) sum[v] = Vec::zero();
  int64_t h = 0;
  for (; h + kTileHeads <= heads; h += kTileHeads) score_heads<kTileHeads>(q + h * dim, weights + h, dim, panel, sum);
  score_rest<kTileHeads / 2>(q + h * dim, weights + h, heads - h, dim, panel, sum);
  for (int v = 0; v < kTileVecs; ++v) {
    if (scale != nullptr) sum[v] = sum[v] * Vec::load(scale + v * Vec::kLanes);
    Vec::store(scores + v * Vec::kLanes, sum[v]);
  }
}

constexpr sparsespan::IndexerKernels kTable = {.panel_keys = kPanelKeys,
                                               .decode = decode,
                                               .query_floats = query_floats,
                                               .panel_floats = panel_floats,
                                               .pack_query = pack_query,
                                               .pack = pack,
                                               .score = score};

}  // namespace
