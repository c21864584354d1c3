#pragma once

// One token of a paged cache, to and from its bytes, led by the layout's table.

#include <cstddef>
#include <cstdint>

#include "kernels/quant.h"
#include "quant/layout.h"
#include "quant/scale.h"

namespace sparsespan {

// Where a token's values begin, its part of the page's tail block, and how many bytes further the next token of the
// page has its own.
struct TokenPlace {
  std::byte* values;
  std::byte* tail;
  std::int64_t stride;
  std::int64_t tail_stride;

  std::byte* of(const KvField& field) const { return field.page_tail ? tail : values + field.offset; }
  std::int64_t stride_of(const KvField& field) const { return field.page_tail ? tail_stride : stride; }
};

// `count` tokens of one page, one behind the other, and rows of values `stride` bytes apart.
struct TokenRun {
  std::int64_t count = 1;
  std::int64_t stride = 0;
};

class TokenCodec {
 public:
  // The rule matters to encode() into fp8 fields only.
  explicit TokenCodec(const PagedCache& cache, ScaleRule rule = ScaleRule::official)
      : cache_(cache),
        info_(layout_info(cache.layout)),
        kernels_(quant_kernels()),
        rule_(rule),
        tail_bytes_(info_.bytes_per_token() - info_.token_stride()) {}

  // values: info.dim floats, the fields in the table's order.
  void encode(std::int64_t slot, const float* values) const;
  // One field (not the scales, which follow from the values), from `dtype` (float32 or bfloat16) at any address; of the
  // run's tokens from `place` on.
  void encode_field(const TokenPlace& place, int field, const void* values, DType dtype, TokenRun run = {}) const;
  // out: info.dim values of dtype info.decoded; of the run's tokens from `slot` on.
  void decode(std::int64_t slot, void* out, TokenRun run = {}) const;
  // decode() widened: what a reader sees, roundings included.
  void decode_to_float(std::int64_t slot, float* out) const;
  // Scale `tile` of the token; the layout has scales.
  float scale(std::int64_t slot, int tile) const;

  const KvLayoutInfo& info() const { return info_; }
  const QuantKernels& kernels() const { return kernels_; }
  TokenPlace place(std::int64_t slot) const {
    return {cache_.token(slot), tail_bytes_ == 0 ? nullptr : cache_.tail(slot, tail_bytes_), cache_.token_stride,
            tail_bytes_};
  }
  std::byte* place(std::int64_t slot, const KvField& field) const { return place(slot).of(field); }
  // The first slot of the next page.
  std::int64_t page_end(std::int64_t slot) const { return slot - slot % cache_.page_size + cache_.page_size; }

 private:
  void encode_fp8(const TokenPlace& place, const KvField& field, const void* values, DType dtype, TokenRun run) const;
  void decode_fp8(const TokenPlace& place, const KvField& field, std::byte* out, TokenRun run) const;

  PagedCache cache_;
  const KvLayoutInfo& info_;
  const QuantKernels& kernels_;
  ScaleRule rule_;
  int tail_bytes_;  // of one token in the page's tail block
};

}  // namespace sparsespan
