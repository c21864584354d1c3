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

// Writes floats as `dtype` (float32 or bfloat16) at any address.
void store(const float* values, int count, DType dtype, std::byte* place) {
  if (dtype == DType::float32) {
    std::memcpy(place, values, static_cast<std::size_t>(count) * sizeof(float));
    return;
  }
  BFloat16 rounded[kMaxTile];
  for (int begin = 0; begin < count; begin += kMaxTile) {
    const int n = std::min(kMaxTile, count - begin);
    row_from_float(values + begin, rounded, n);
    std::memcpy(place + begin * sizeof(BFloat16), rounded, n * sizeof(BFloat16));
  }
}

}  // namespace

void TokenCodec::encode_fp8(std::int64_t slot, const KvField& field, const float* values) const {
  auto* codes = reinterpret_cast<std::uint8_t*>(place(slot, field));
  std::byte* scales = place(slot, *info_.scale_field());
  const int tile = info_.tile();
  for (int begin = 0; begin < field.count; begin += tile) {
    const float scale = encode_tile(kernels_, rule_, values + begin, tile, codes + begin);
    std::memcpy(scales, &scale, sizeof scale);
    scales += sizeof scale;
  }
}

void TokenCodec::encode(std::int64_t slot, const float* values) const {
  for (int i = 0; i < info_.num_fields; ++i) {
    const KvField& field = info_.fields[i];
    if (field.is_scale()) continue;
    if (field.dtype == DType::float8_e4m3fn) {
      encode_fp8(slot, field, values);
    } else {
      store(values, field.count, field.dtype, place(slot, field));
    }
    values += field.count;
  }
}

float TokenCodec::scale(std::int64_t slot, int tile) const {
  float value = 0.0F;
  std::memcpy(&value, place(slot, *info_.scale_field()) + tile * sizeof value, sizeof value);
  return value;
}

void TokenCodec::decode_fp8(std::int64_t slot, const KvField& field, std::byte* out) const {
  const auto* codes = reinterpret_cast<const std::uint8_t*>(place(slot, field));
  const int tile = info_.tile();
  float values[kMaxTile];
  for (int begin = 0; begin < field.count; begin += tile) {
    kernels_.decode_e4m3(codes + begin, kE4M3Table.data(), scale(slot, begin / tile), values, tile);
    store(values, tile, info_.decoded, out + begin * size_of(info_.decoded));
  }
}

void TokenCodec::decode(std::int64_t slot, void* out) const {
  auto* to = static_cast<std::byte*>(out);
  for (int i = 0; i < info_.num_fields; ++i) {
    const KvField& field = info_.fields[i];
    if (field.is_scale()) continue;
    if (field.dtype == DType::float8_e4m3fn) {
      decode_fp8(slot, field, to);
    } else {
      std::memcpy(to, place(slot, field), field.bytes());
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
