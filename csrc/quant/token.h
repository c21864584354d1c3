#pragma once

// One token of a paged cache, to and from its bytes, led by the layout's table.

#include <cstddef>
#include <cstdint>

#include "kernels/quant.h"
#include "quant/layout.h"
#include "quant/scale.h"

namespace sparsespan {

class TokenCodec {
 public:
  // The rule matters to encode() into fp8 fields only.
  explicit TokenCodec(const PagedCache& cache, ScaleRule rule = ScaleRule::official)
      : cache_(cache), info_(layout_info(cache.layout)), kernels_(quant_kernels()), rule_(rule) {}

  // values: info.dim floats, the fields in the table's order.
  void encode(std::int64_t slot, const float* values) const;
  // out: info.dim values of dtype info.decoded.
  void decode(std::int64_t slot, void* out) const;
  // decode() widened: what a reader sees, roundings included.
  void decode_to_float(std::int64_t slot, float* out) const;
  // Scale `tile` of the token; the layout has scales.
  float scale(std::int64_t slot, int tile) const;

  const KvLayoutInfo& info() const { return info_; }
  std::byte* place(std::int64_t slot, const KvField& field) const {
    return field.page_tail ? cache_.tail(slot, field.bytes()) : cache_.token(slot) + field.offset;
  }

 private:
  void encode_fp8(std::int64_t slot, const KvField& field, const float* values) const;
  void decode_fp8(std::int64_t slot, const KvField& field, std::byte* out) const;

  PagedCache cache_;
  const KvLayoutInfo& info_;
  const QuantKernels& kernels_;
  ScaleRule rule_;
};

}  // namespace sparsespan
