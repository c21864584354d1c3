#include <cstring>

#include "core/parallel.h"
#include "core/scratch.h"
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
  const TokenCodec reader(from);
  const TokenCodec writer(to, p.rule);
  parallel_rows(from.slots(), kKvDim, p.threads, [&](std::int64_t s, int) {
    float values[kKvDim];
    reader.decode_to_float(s, values);
    writer.encode(s, values);
  });
}

}  // namespace sparsespan
