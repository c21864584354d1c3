#pragma once

// KV rows by index, wherever they lie: a packed array [S, dim] or a paged cache. Decoded to float32.

#include <optional>
#include <string_view>

#include "core/tensor.h"
#include "kernels/attention.h"
#include "quant/layout.h"

namespace sparsespan {

class KvRows {
 public:
  // Checks `kv` against the layout (or, without one, against [S, dim] or [S, 1, dim] of float32 or bfloat16).
  KvRows(std::string_view op, std::string_view argument, const Tensor& kv, std::optional<KvLayout> layout,
         std::int64_t page_size, std::int64_t dim);

  std::int64_t size() const { return size_; }  // indices run over [0, size)
  // Writes the `dim` values of row `index`, which must be in range.
  void load(std::int64_t index, float* out) const;
  // True when rows are bfloat16, or decode to it.
  bool narrow() const { return narrow_ || layout_ == KvLayout::fp8_656; }
  // The same as bfloat16, when narrow() and this level has the kernels for it.
  void load_narrow(std::int64_t index, std::uint16_t* out) const;
  void prefetch(std::int64_t index) const;
  const std::byte* address(std::int64_t index) const {
    return layout_ ? cache_.token(index) : packed_ + index * row_bytes_;
  }
  std::int64_t bytes() const { return layout_ ? cache_.token_stride : row_bytes_; }  // from a row to the next one

 private:
  std::optional<KvLayout> layout_;
  PagedCache cache_;
  const std::byte* packed_ = nullptr;
  std::int64_t row_bytes_ = 0;
  bool narrow_ = false;  // bfloat16 rows
  const NarrowAttentionKernels* narrow_kernels_ = narrow_attention_kernels();
  std::int64_t dim_ = 0;
  std::int64_t size_ = 0;
};

}  // namespace sparsespan
