#include <cstring>

#include "core/memory.h"
#include "core/parallel.h"
#include "core/row_blocks.h"
#include "quant/cache_read.h"
#include "quant/token.h"

namespace sparsespan {

namespace {

constexpr std::string_view kOp = "convert_kv";

void copy_pages(const PagedCache& from, const PagedCache& to, int threads) {
  const std::int64_t bytes = from.page_size * layout_info(from.layout).bytes_per_token();
  parallel_for(from.pages, threads, [&](std::int64_t page, int) {
    std::memcpy(to.data + page * to.page_stride, from.data + page * from.page_stride, static_cast<std::size_t>(bytes));
  });
}

// One token into `to`: fields straight from the source's bytes where nothing has to be decoded first.
void convert_token(const TokenCodec& reader, const TokenCodec& writer, std::int64_t slot, const TokenPlace& to) {
  const KvLayoutInfo& info = writer.info();
  const DType dtype = reader.info().decoded;
  alignas(64) std::byte decoded[kKvDim * sizeof(float)];
  const std::byte* values = reader.place(slot).values;  // unscaled fields lie one behind the other, as they decode
  if (reader.info().tile() != 0) {
    if (info.tile() == 0 && info.decoded == dtype) {
      reader.decode(slot, to.values);
      return;
    }
    reader.decode(slot, decoded);
    values = decoded;
  }
  for (int i = 0; i < info.num_fields; ++i) {
    if (info.fields[i].is_scale()) continue;
    writer.encode_field(to, i, values, dtype);
    values += info.fields[i].count * size_of(dtype);
  }
}

void convert_tokens(const TokenCodec& reader, const TokenCodec& writer, std::int64_t slots, int threads) {
  const KvLayoutInfo& to = writer.info();
  const int bytes = to.bytes_per_token();
  // Past the caches only where a token's bytes lie together: it is made aside and goes out in one piece.
  const bool stream = bytes == to.token_stride() && outgrows_caches(slots * bytes);
  parallel_row_blocks(slots, kKvDim, threads, [&](std::int64_t first, std::int64_t last, int) {
    alignas(64) std::byte token[kKvDim * sizeof(float)];
    for (std::int64_t s = first; s < last; ++s) {
      const TokenPlace place = writer.place(s);
      convert_token(reader, writer, s, stream ? TokenPlace{token, nullptr} : place);
      if (stream) writer.kernels().copy_out(token, place.values, bytes);
    }
    if (stream) writer.kernels().fence();
  });
}

}  // namespace

PagedCache convert_kv_source(const ConvertKvParams& p) {
  const KvLayoutInfo& from = layout_info(p.from);
  const KvLayoutInfo& to = layout_info(p.to);
  if (from.is_index() != to.is_index()) {
    refuse_value(kOp, "dst", "is \"", to.name, "\" while src is \"", from.name,
                 "\", needs both to hold latent and rope, or both index keys");
  }
  return require_paged_cache(kOp, "cache", p.cache, p.from, page_size_of(kOp, "cache", p.cache, p.from));
}

void convert_kv(const ConvertKvParams& p) {
  const PagedCache from = convert_kv_source(p);
  const PagedCache to = require_paged_cache(kOp, "out", p.out, p.to, from.page_size);
  if (to.pages != from.pages) {
    refuse_value(kOp, "out", "has ", to.pages, " pages, needs the ", from.pages, " of cache");
  }
  require_writable(kOp, "out", p.out, {&p.cache});
  if (p.from == p.to) {
    copy_pages(from, to, p.threads);
    return;
  }
  convert_tokens(TokenCodec(from), TokenCodec(to, p.rule), from.slots(), p.threads);
}

}  // namespace sparsespan
