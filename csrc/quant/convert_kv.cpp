#include <algorithm>
#include <cstring>

#include "core/memory.h"
#include "core/parallel.h"
#include "core/row_blocks.h"
#include "quant/cache_read.h"
#include "quant/token.h"

namespace sparsespan {

namespace {

constexpr std::string_view kOp = "convert_kv";
constexpr std::int64_t kStaged = 8;  // tokens

void copy_pages(const PagedCache& from, const PagedCache& to, int threads) {
  const std::int64_t bytes = from.page_size * layout_info(from.layout).bytes_per_token();
  parallel_for(from.pages, threads, [&](std::int64_t page, int) {
    std::memcpy(to.data + page * to.page_stride, from.data + page * from.page_stride, static_cast<std::size_t>(bytes));
  });
}

// Tokens [slot, slot + n) of one page, up to kStaged of them, into `to`: fields straight from the source's bytes where
// nothing has to be decoded first.
void convert_run(const TokenCodec& reader, const TokenCodec& writer, std::int64_t slot, std::int64_t n,
                 const TokenPlace& to) {
  const KvLayoutInfo& info = writer.info();
  const DType dtype = reader.info().decoded;
  const TokenPlace from = reader.place(slot);
  alignas(64) std::byte decoded[kStaged * kKvDim * sizeof(float)];
  const std::byte* values = from.values;  // unscaled fields lie one behind the other, as they decode
  TokenRun run = {n, from.stride};
  if (reader.info().tile() != 0) {
    if (info.tile() == 0 && info.decoded == dtype) {
      reader.decode(slot, to.values, {n, to.stride});
      return;
    }
    run.stride = reader.info().dim * size_of(dtype);
    reader.decode(slot, decoded, run);
    values = decoded;
  }
  for (int i = 0; i < info.num_fields; ++i) {
    if (info.fields[i].is_scale()) continue;
    writer.encode_field(to, i, values, dtype, run);
    values += info.fields[i].count * size_of(dtype);
  }
}

void convert_tokens(const TokenCodec& reader, const TokenCodec& writer, const PagedCache& to, int threads) {
  const int bytes = writer.info().bytes_per_token();
  // Past the caches only where a page's tokens lie one behind the other: they are made aside and go out in one piece.
  const bool stream = bytes == to.token_stride && outgrows_caches(to.slots() * bytes);
  parallel_row_blocks(to.slots(), kKvDim, threads, [&](std::int64_t first, std::int64_t last, int) {
    alignas(64) std::byte stage[kStaged * kKvDim * sizeof(float)];
    for (std::int64_t s = first, n = 0; s < last; s += n) {
      n = std::min({kStaged, last - s, writer.page_end(s) - s});
      const TokenPlace place = writer.place(s);
      convert_run(reader, writer, s, n, stream ? TokenPlace{stage, nullptr, bytes, 0} : place);
      if (stream) writer.kernels().copy_out(stage, place.values, n * bytes);
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
  convert_tokens(TokenCodec(from), TokenCodec(to, p.rule), to, p.threads);
}

}  // namespace sparsespan
