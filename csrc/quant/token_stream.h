#pragma once

// Tokens of a paged cache one behind the other, as ranks exchange them: the bytes of the cache, without its paging.

#include <cstring>

#include "quant/token.h"

namespace sparsespan {

// `tokens` tokens of `layout`, `stride` bytes apart: a cache with one token per page, so that slot = place in the
// stream.
inline PagedCache token_stream(KvLayout layout, std::byte* data, std::int64_t tokens, std::int64_t stride) {
  return {.data = data,
          .layout = layout,
          .pages = tokens,
          .page_size = 1,
          .page_stride = stride,
          .token_stride = layout_info(layout).token_stride()};
}

// Field by field: what one token stores, not what it decodes to. Both have the same layout.
inline void copy_token(const TokenCodec& from, std::int64_t from_slot, const TokenCodec& to, std::int64_t to_slot) {
  for (int f = 0; f < to.info().num_fields; ++f) {
    const KvField& field = to.info().fields[f];
    std::memcpy(to.place(to_slot, field), from.place(from_slot, field), static_cast<std::size_t>(field.bytes()));
  }
}

}  // namespace sparsespan
