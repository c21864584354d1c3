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

void TokenCodec::encode_fp8(const TokenPlace& token, const KvField& field, const std::byte* values, DType dtype) const {
  auto* codes = reinterpret_cast<std::uint8_t*>(place(token, field));
  std::byte* scales = place(token, *info_.scale_field());
  const bool bfloat16 = dtype == DType::bfloat16;
  const int element = size_of(dtype);
  const int tile = info_.tile();
  for (int begin = 0; begin < field.count; begin += tile) {
    const float scale = encode_tile(kernels_, rule_, values + begin * element, bfloat16, tile, codes + begin);
    std::memcpy(scales, &scale, sizeof scale);
    scales += sizeof scale;
  }
}

void TokenCodec::encode_field(const TokenPlace& token, int i, const void* values, DType dtype) const {
  const KvField& field = info_.fields[i];
  if (field.dtype == DType::float8_e4m3fn) {
    encode_fp8(token, field, static_cast<const std::byte*>(values), dtype);
  } else if (field.dtype == dtype) {
    std::memcpy(place(token, field), values, field.bytes());
  } else if (dtype == DType::float32) {
    round(static_cast<const std::byte*>(values), field.count, place(token, field));
  } else {
    widen(static_cast<const std::byte*>(values), field.count, place(token, field));
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

void TokenCodec::decode_fp8(const TokenPlace& token, const KvField& field, std::byte* out, bool stream) const {
  const auto* codes = reinterpret_cast<const std::uint8_t*>(place(token, field));
  const std::byte* scales = place(token, *info_.scale_field());
  const bool bfloat16 = info_.decoded == DType::bfloat16;
  const int tile = info_.tile();
  for (int begin = 0; begin < field.count; begin += tile) {
    float scale = 0.0F;
    std::memcpy(&scale, scales + begin / tile * sizeof scale, sizeof scale);
    kernels_.decode_e4m3(codes + begin, kE4M3Table.data(), scale, out + begin * size_of(info_.decoded), bfloat16,
                         stream, tile);
  }
}

void TokenCodec::decode(std::int64_t slot, void* out, bool stream) const {
  auto* to = static_cast<std::byte*>(out);
  const TokenPlace token = place(slot);
  for (int i = 0; i < info_.num_fields; ++i) {
    const KvField& field = info_.fields[i];
    if (field.is_scale()) continue;
    if (field.dtype == DType::float8_e4m3fn) {
      decode_fp8(token, field, to, stream);
    } else if (stream) {
      kernels_.copy_out(place(token, field), to, field.bytes());
    } else {
      std::memcpy(to, place(token, field), field.bytes());
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
