#include "attention/kv_rows.h"

#include <cstring>

#include "kernels/attention.h"

namespace sparsespan {

namespace {

void load_fp8_token(const std::byte* token, float* out, const AttentionKernels& kernels) {
  constexpr const KvLayoutInfo& kInfo = layout_info(KvLayout::fp8_656);
  constexpr const KvField& kLatent = kInfo.fields[0];
  constexpr const KvField& kScale = kInfo.fields[1];
  constexpr const KvField& kRope = kInfo.fields[2];
  const auto* codes = reinterpret_cast<const std::uint8_t*>(token + kLatent.offset);
  for (int tile = 0; tile < kScale.count; ++tile) {
    float scale = 0;  // a token may start at any byte
    std::memcpy(&scale, token + kScale.offset + tile * sizeof(float), sizeof(float));
    kernels.load_fp8(codes + tile * kScaleTile, scale, out + tile * kScaleTile, kScaleTile);
  }
  std::uint16_t rope[kRopeDim];
  std::memcpy(rope, token + kRope.offset, sizeof(rope));
  kernels.load_bf16(rope, out + kLatentDim, kRopeDim);
}

void load_fp8_token(const std::byte* token, std::uint16_t* out, const NarrowAttentionKernels& kernels) {
  constexpr const KvLayoutInfo& kInfo = layout_info(KvLayout::fp8_656);
  constexpr const KvField& kScale = kInfo.fields[1];
  const auto* codes = reinterpret_cast<const std::uint8_t*>(token + kInfo.fields[0].offset);
  for (int tile = 0; tile < kScale.count; ++tile) {
    float scale = 0;
    std::memcpy(&scale, token + kScale.offset + tile * sizeof(float), sizeof(float));
    kernels.decode_fp8(codes + tile * kScaleTile, scale, out + tile * kScaleTile, kScaleTile);
  }
  std::memcpy(out + kLatentDim, token + kInfo.fields[2].offset, kRopeDim * sizeof(std::uint16_t));
}

}  // namespace

KvRows::KvRows(std::string_view op, std::string_view argument, const Tensor& kv, std::optional<KvLayout> layout,
               std::int64_t page_size, std::int64_t dim)
    : layout_(layout), dim_(dim) {
  if (layout) {
    const KvLayoutInfo& info = layout_info(*layout);
    if (info.is_index()) refuse_value(op, "layout", "is \"", info.name, "\", needs a KV layout, not an index cache's");
    cache_ = require_paged_cache(op, argument, kv, *layout, page_size);
    if (dim != info.dim) {
      refuse_value(op, "q", "has ", dim, " values per head, needs ", info.dim, " for layout ", info.name);
    }
    narrow_ = *layout == KvLayout::bf16_576;
    size_ = cache_.slots();
    return;
  }
  require_dtype(op, argument, kv, {DType::float32, DType::bfloat16});
  if (kv.rank == 3) {
    require_shape(op, argument, kv, {kAny, 1, dim}, "[S, 1, Dqk]");
  } else {
    require_shape(op, argument, kv, {kAny, dim}, "[S, Dqk]");
  }
  require_inner_contiguous(op, argument, kv);
  packed_ = static_cast<const std::byte*>(kv.data);
  row_bytes_ = kv.strides[0] * size_of(kv.dtype);
  narrow_ = kv.dtype == DType::bfloat16;
  size_ = kv.shape[0];
}

void KvRows::load(std::int64_t index, float* out) const {
  const AttentionKernels& kernels = attention_kernels();
  const std::byte* row = address(index);
  if (layout_ == KvLayout::fp8_656) {
    load_fp8_token(row, out, kernels);
  } else if (narrow_) {
    kernels.load_bf16(reinterpret_cast<const std::uint16_t*>(row), out, dim_);
  } else {
    std::memcpy(out, row, static_cast<std::size_t>(dim_) * sizeof(float));
  }
}

void KvRows::load_narrow(std::int64_t index, std::uint16_t* out) const {
  if (layout_ == KvLayout::fp8_656) {
    load_fp8_token(address(index), out, *narrow_kernels_);
  } else {
    std::memcpy(out, address(index), static_cast<std::size_t>(dim_) * sizeof(std::uint16_t));
  }
}

void KvRows::prefetch(std::int64_t index) const {
  const std::byte* row = address(index);
  const std::int64_t end = bytes();
  for (std::int64_t i = 0; i < end; i += 64) __builtin_prefetch(row + i);
}

}  // namespace sparsespan
