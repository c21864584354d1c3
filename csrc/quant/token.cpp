#include "quant/token.h"

#include <cstring>

#include "core/convert.h"

namespace sparsespan {

namespace {

// Byte caches may start at any address and 656 is no multiple of 64, so floats go in and out by memcpy.
constexpr int kMaxTile = 128;

// A field that is not fp8 is stored as it decodes: reading it is a copy.
constexpr bool plain_fields_are_stored_as_decoded() {
  for (const auto& info : detail::kKvLayouts) {
    if (info.tile() > kMaxTile) return false;
    for (int i = 0; i < info.num_fields; ++i) {
      const auto& field = info.fields[i];
      if (!field.is_scale() && field.dtype != DType::float8_e4m3fn && field.dtype != info.decoded) return false;
    }
  }
  return true;
}
static_assert(plain_fields_are_stored_as_decoded());

// Floats at any address to bfloat16 at any address, and back.
void round(const std::byte* values, int count, std::byte* place) {
  for (int begin = 0; begin < count; begin += kMaxTile) {
    const int n = std::min(kMaxTile, count - begin);
    float wide[kMaxTile];
    BFloat16 rounded[kMaxTile];
    std::memcpy(wide, values + begin * sizeof(float), n * sizeof(float));
    row_from_float(wide, rounded, n);
    std::memcpy(place + begin * sizeof(BFloat16), rounded, n * sizeof(BFloat16));
  }
}

void widen(const std::byte* values, int count, std::byte* place) {
  for (int begin = 0; begin < count; begin += kMaxTile) {
    const int n = std::min(kMaxTile, count - begin);
    float wide[kMaxTile];
    BFloat16 narrow[kMaxTile];
    std::memcpy(narrow, values + begin * sizeof(BFloat16), n * sizeof(BFloat16));
    row_to_float(narrow, wide, n);
    std::memcpy(place + begin * sizeof(float), wide, n * sizeof(float));
  }
}

}  // namespace

void TokenCodec::encode_fp8(const TokenPlace& token, const KvField& field, const void* values, DType dtype,
                            TokenRun run) const {
  const KvField& scales = *info_.scale_field();
  kernels_.encode_rows({.x = values,
                        .bfloat16 = dtype == DType::bfloat16,
                        .rule = rule_,
                        .tile = info_.tile(),
                        .n = field.count,
                        .codes = reinterpret_cast<std::uint8_t*>(token.of(field)),
                        .scales = token.of(scales),
                        .rows = run.count,
                        .x_stride = run.stride,
                        .codes_stride = token.stride_of(field),
                        .scales_stride = token.stride_of(scales)});
}

void TokenCodec::encode_field(const TokenPlace& token, int i, const void* values, DType dtype, TokenRun run) const {
  const KvField& field = info_.fields[i];
  if (field.dtype == DType::float8_e4m3fn) {
    encode_fp8(token, field, values, dtype, run);
    return;
  }
  std::byte* to = token.of(field);
  const auto* from = static_cast<const std::byte*>(values);
  for (std::int64_t t = 0; t < run.count; ++t, to += token.stride_of(field), from += run.stride) {
    if (field.dtype == dtype) {
      std::memcpy(to, from, field.bytes());
    } else if (dtype == DType::float32) {
      round(from, field.count, to);
    } else {
      widen(from, field.count, to);
    }
  }
}

void TokenCodec::encode(std::int64_t slot, const float* values) const {
  const TokenPlace token = place(slot);
  for (int i = 0; i < info_.num_fields; ++i) {
    if (info_.fields[i].is_scale()) continue;
    encode_field(token, i, values, DType::float32);
    values += info_.fields[i].count;
  }
}

float TokenCodec::scale(std::int64_t slot, int tile) const {
  float value = 0.0F;
  std::memcpy(&value, place(slot, *info_.scale_field()) + tile * sizeof value, sizeof value);
  return value;
}

void TokenCodec::decode_fp8(const TokenPlace& token, const KvField& field, std::byte* out, TokenRun run) const {
  const KvField& scales = *info_.scale_field();
  kernels_.decode_rows({.codes = reinterpret_cast<const std::uint8_t*>(token.of(field)),
                        .table = kE4M3Table.data(),
                        .scales = token.of(scales),
                        .tile = info_.tile(),
                        .n = field.count,
                        .out = out,
                        .bfloat16 = info_.decoded == DType::bfloat16,
                        .rows = run.count,
                        .codes_stride = token.stride_of(field),
                        .scales_stride = token.stride_of(scales),
                        .out_stride = run.stride});
}

void TokenCodec::decode(std::int64_t slot, void* out, TokenRun run) const {
  auto* to = static_cast<std::byte*>(out);
  const TokenPlace token = place(slot);
  for (int i = 0; i < info_.num_fields; ++i) {
    const KvField& field = info_.fields[i];
    if (field.is_scale()) continue;
    if (field.dtype == DType::float8_e4m3fn) {
      decode_fp8(token, field, to, run);
    } else {
      const std::byte* from = token.of(field);
      for (std::int64_t t = 0; t < run.count; ++t) {
        std::memcpy(to + t * run.stride, from + t * token.stride_of(field), field.bytes());
      }
    }
    to += field.count * size_of(info_.decoded);
  }
}

void TokenCodec::decode_to_float(std::int64_t slot, float* out) const {
  if (info_.decoded == DType::float32) {
    decode(slot, out);
    return;
  }
  BFloat16 values[kKvDim];
  decode(slot, values);
  row_to_float(values, out, info_.dim);
}

}  // namespace sparsespan
