#pragma once

// KV and index-K cache layouts: every byte map of the project lives here and nowhere else.
//
//   name        token bytes  what a token holds                                        cache array (NumPy)
//   f32_576     2304         512 f32 latent | 64 f32 rope                              float32  [pages, page_size, 576]
//   bf16_576    1152         512 bf16 latent | 64 bf16 rope                            bfloat16 [pages, page_size, 576]
//   fp8_656     656          512 e4m3 latent | 4 f32 scales (128 each) | 64 bf16 rope  uint8    [pages, page_size, 656]
//   index_132   132          128 e4m3 | 1 f32 scale, the scales at the page's tail     uint8    [pages, page_size, 132]
//   index_bf16  256          128 bf16                                                  bfloat16 [pages, page_size, 128]
//   index_f32   512          128 f32                                                   float32  [pages, page_size, 128]
//
// index_132 is only a byte view: a page is page_size * 128 value bytes followed by page_size * 4 scale bytes
// (DeepGEMM), so a token's 132 bytes do not lie together. Sources: FlashMLA, DeepGEMM, vLLM fp8_ds_mla.
//
// What a token decodes to (`decoded`) is part of the layout: fp8_656's latent IS bfloat16(float(e4m3) * scale), as
// FlashMLA's reader has it; index_132's key is the float32 product.
//
// To add one: an enumerator and a row of the table; readers, writers and converters follow the fields. fp8_656_ascend
// is such a row alone (512 e4m3 at 0 | 64 bf16 at 512 | 4 f32 at 640). fp8_584 (V4) also needs: e8m0 scales in
// TokenCodec (7 tiles of 64, so tile = latent.count / scale.count as it stands, and one zero byte behind them), a tail
// field wider than its values, and pages whose bytes are rounded up to a multiple of 576.

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "core/tensor.h"

namespace sparsespan {

enum class KvLayout : std::uint8_t { f32_576, bf16_576, fp8_656, index_132, index_bf16, index_f32 };
inline constexpr int kKvLayoutCount = 6;

inline constexpr int kLatentDim = 512;
inline constexpr int kRopeDim = 64;
inline constexpr int kKvDim = kLatentDim + kRopeDim;
inline constexpr int kScaleTile = 128;  // elements that share one fp8 scale
inline constexpr int kIndexDim = 128;

struct KvField {
  std::string_view name;  // "latent", "scale", "rope", "key"
  DType dtype;
  int count;       // elements per token
  int offset;      // bytes from the token's first byte; from its place in the tail block for page_tail fields
  bool page_tail;  // true: stored behind the values of the whole page, token by token
  constexpr bool is_scale() const { return name == "scale"; }
  constexpr int bytes() const { return count * (dtype == DType::float32 ? 4 : dtype == DType::bfloat16 ? 2 : 1); }
};

struct KvLayoutInfo {
  std::string_view name;
  KvLayout layout;
  DType storage;  // dtype of the cache array
  int width;      // elements of `storage` per token
  int dim;        // values per token after decoding
  DType decoded;  // dtype of a decoded value
  int num_fields;
  std::array<KvField, 3> fields;

  constexpr int bytes_per_token() const {
    int bytes = 0;
    for (int i = 0; i < num_fields; ++i) bytes += fields[i].bytes();
    return bytes;
  }
  // Bytes between neighbouring tokens of a page: what lies at the page's tail is not among them.
  constexpr int token_stride() const {
    int bytes = 0;
    for (int i = 0; i < num_fields; ++i) bytes += fields[i].page_tail ? 0 : fields[i].bytes();
    return bytes;
  }
  constexpr bool is_index() const { return dim == kIndexDim; }
  constexpr int scale_index() const {
    for (int i = 0; i < num_fields; ++i) {
      if (fields[i].is_scale()) return i;
    }
    return -1;
  }
  constexpr const KvField* scale_field() const { return scale_index() < 0 ? nullptr : &fields[scale_index()]; }
  // Elements that share one scale; 0 where nothing is scaled.
  constexpr int tile() const { return scale_index() < 0 ? 0 : fields[0].count / fields[scale_index()].count; }
};

namespace detail {

inline constexpr KvField kNoField = {"", DType::none, 0, 0, false};

inline constexpr std::array<KvLayoutInfo, kKvLayoutCount> kKvLayouts = {{
    {"f32_576",
     KvLayout::f32_576,
     DType::float32,
     kKvDim,
     kKvDim,
     DType::float32,
     2,
     {{{"latent", DType::float32, 512, 0, false}, {"rope", DType::float32, 64, 2048, false}, kNoField}}},
    {"bf16_576",
     KvLayout::bf16_576,
     DType::bfloat16,
     kKvDim,
     kKvDim,
     DType::bfloat16,
     2,
     {{{"latent", DType::bfloat16, 512, 0, false}, {"rope", DType::bfloat16, 64, 1024, false}, kNoField}}},
    {"fp8_656",
     KvLayout::fp8_656,
     DType::uint8,
     656,
     kKvDim,
     DType::bfloat16,
     3,
     {{{"latent", DType::float8_e4m3fn, 512, 0, false},
       {"scale", DType::float32, 4, 512, false},
       {"rope", DType::bfloat16, 64, 528, false}}}},
    {"index_132",
     KvLayout::index_132,
     DType::uint8,
     132,
     kIndexDim,
     DType::float32,
     2,
     {{{"key", DType::float8_e4m3fn, 128, 0, false}, {"scale", DType::float32, 1, 0, true}, kNoField}}},
    {"index_bf16",
     KvLayout::index_bf16,
     DType::bfloat16,
     kIndexDim,
     kIndexDim,
     DType::bfloat16,
     1,
     {{{"key", DType::bfloat16, 128, 0, false}, kNoField, kNoField}}},
    {"index_f32",
     KvLayout::index_f32,
     DType::float32,
     kIndexDim,
     kIndexDim,
     DType::float32,
     1,
     {{{"key", DType::float32, 128, 0, false}, kNoField, kNoField}}},
}};

}  // namespace detail

constexpr const KvLayoutInfo& layout_info(KvLayout layout) { return detail::kKvLayouts[static_cast<int>(layout)]; }

static_assert(layout_info(KvLayout::f32_576).bytes_per_token() == 2304);
static_assert(layout_info(KvLayout::bf16_576).bytes_per_token() == 1152);
static_assert(layout_info(KvLayout::fp8_656).bytes_per_token() == 656);
static_assert(layout_info(KvLayout::fp8_656).fields[2].offset == 528);
static_assert(layout_info(KvLayout::index_132).bytes_per_token() == 132);
static_assert(layout_info(KvLayout::index_132).token_stride() == 128);

// ValueError listing the known names.
KvLayout parse_kv_layout(std::string_view op, std::string_view argument, std::string_view name);

// Tokens per page as the shape of `cache` says: axis 1 of [pages, page_size, (1,) width], or axis 1 of
// [pages, page_size * width] divided by the width. ValueError where neither fits.
std::int64_t page_size_of(std::string_view op, std::string_view argument, const Tensor& cache, KvLayout layout);

// A paged cache after its checks: a slot is page * page_size + offset.
struct PagedCache {
  std::byte* data = nullptr;
  KvLayout layout = KvLayout::f32_576;
  std::int64_t pages = 0;
  std::int64_t page_size = 0;
  std::int64_t page_stride = 0;  // bytes; pages may be padded
  int token_stride = 0;          // bytes

  std::int64_t slots() const { return pages * page_size; }
  // First byte of the token's values.
  std::byte* token(std::int64_t slot) const {
    return data + (slot / page_size) * page_stride + (slot % page_size) * token_stride;
  }
  // First byte of the token's place in the page's tail block (index_132: its float32 scale).
  std::byte* tail(std::int64_t slot, int bytes_per_token_in_tail) const {
    return data + (slot / page_size) * page_stride + page_size * token_stride +
           (slot % page_size) * bytes_per_token_in_tail;
  }
};

// Checks dtype, shape and strides of `cache` against the layout and page_size >= 1. Takes [pages, page_size, width],
// [pages, page_size, 1, width] (the peers' head axis) or [pages, page_size * width]; pages may be padded, tokens inside
// a page may not. Byte layouts take uint8 (also int8 or float8_e4m3fn byte views).
PagedCache require_paged_cache(std::string_view op, std::string_view argument, const Tensor& cache, KvLayout layout,
                               std::int64_t page_size);

}  // namespace sparsespan
