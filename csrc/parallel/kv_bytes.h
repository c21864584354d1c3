#pragma once

// Bytes of one token in one layer, by layout name (spec of the layouts: sparsespan.quant.kv_layout).
//   latent = 512 compressed + 64 rope values; index = the lightning indexer's key of 128 values.

#include <array>
#include <cstdint>
#include <string_view>

namespace sparsespan {

struct KvBytes {
  std::string_view name;
  std::int64_t bytes;
  bool index;  // an index-K layout, not a latent one
};

inline constexpr std::array<KvBytes, 8> kKvBytes{{
    {"f32_576", 576 * 4, false},
    {"bf16_576", 576 * 2, false},
    {"fp8_656", 512 + 4 * 4 + 64 * 2, false},
    {"fp8_656_ascend", 512 + 64 * 2 + 4 * 4, false},
    {"fp8_584", 584, false},  // 448 fp8 | 64 bf16 | 8 scale bytes
    {"index_132", 128 + 4, true},
    {"index_bf16", 128 * 2, true},
    {"index_f32", 128 * 4, true},
}};

}  // namespace sparsespan
