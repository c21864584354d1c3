#include "quant/cache_write.h"

#include <initializer_list>

#include "core/parallel.h"
#include "quant/rows.h"
#include "quant/token.h"

namespace sparsespan {

namespace {

void require_rows(std::string_view op, std::string_view argument, const Tensor& x, std::int64_t rows,
                  std::int64_t width, std::string_view names) {
  require_dtype(op, argument, x, {DType::float32, DType::bfloat16});
  require_shape(op, argument, x, {rows, width}, names);
  require_inner_contiguous(op, argument, x);
}

// Row t of each source goes to the field of the same place in the layout.
void write_rows(const TokenCodec& codec, const Tensor& slot_mapping, std::initializer_list<const Tensor*> sources,
                int threads) {
  const IntView<1> slots(slot_mapping);
  const KvLayoutInfo& info = codec.info();
  parallel_rows(slots.shape[0], info.dim, threads, [&](std::int64_t t, int) {
    const std::int64_t slot = slots(t);
    if (slot < 0) return;
    const TokenPlace place = codec.place(slot);
    int field = 0;
    for (const Tensor* x : sources) {
      while (info.fields[field].is_scale()) ++field;
      codec.encode_field(place, field++, element_at(*x, t, 0), x->dtype);
    }
  });
}

}  // namespace

void require_layout_kind(std::string_view op, std::string_view argument, KvLayout layout, bool index) {
  const KvLayoutInfo& info = layout_info(layout);
  if (info.is_index() == index) return;
  refuse_value(op, argument, "is \"", info.name, "\", which holds ", info.is_index() ? "index keys" : "latent and rope",
               ", needs a layout of ", index ? "index keys" : "latent and rope");
}

void concat_and_cache_mla(const ConcatAndCacheMlaParams& p) {
  constexpr std::string_view kOp = "concat_and_cache_mla";
  require_layout_kind(kOp, "layout", p.layout, false);
  require_int(kOp, "slot_mapping", p.slot_mapping);
  require_shape(kOp, "slot_mapping", p.slot_mapping, {kAny}, "[T]");
  const std::int64_t rows = p.slot_mapping.shape[0];
  require_rows(kOp, "c_kv", p.c_kv, rows, kLatentDim, "[T, 512]");
  require_rows(kOp, "k_pe", p.k_pe, rows, kRopeDim, "[T, 64]");
  const PagedCache cache = require_paged_cache(kOp, "cache", p.cache, p.layout, p.page_size);
  require_writable(kOp, "cache", p.cache, {&p.c_kv, &p.k_pe, &p.slot_mapping});
  const TokenCodec codec(cache, p.rule);
  if (p.validate == Validate::full) {
    require_slots(kOp, p.slot_mapping, cache.slots());
    if (codec.info().tile() != 0) require_finite(kOp, "c_kv", p.c_kv, p.slot_mapping, p.threads);
  }
  write_rows(codec, p.slot_mapping, {&p.c_kv, &p.k_pe}, p.threads);
}

void indexer_k_quant_and_cache(const IndexerKQuantAndCacheParams& p) {
  constexpr std::string_view kOp = "indexer_k_quant_and_cache";
  require_layout_kind(kOp, "layout", p.layout, true);
  require_int(kOp, "slot_mapping", p.slot_mapping);
  require_shape(kOp, "slot_mapping", p.slot_mapping, {kAny}, "[T]");
  require_rows(kOp, "k", p.k, p.slot_mapping.shape[0], kIndexDim, "[T, 128]");
  const PagedCache cache = require_paged_cache(kOp, "cache", p.cache, p.layout, p.page_size);
  require_writable(kOp, "cache", p.cache, {&p.k, &p.slot_mapping});
  const TokenCodec codec(cache, p.rule);
  if (p.validate == Validate::full) {
    require_slots(kOp, p.slot_mapping, cache.slots());
    if (codec.info().tile() != 0) require_finite(kOp, "k", p.k, p.slot_mapping, p.threads);
  }
  write_rows(codec, p.slot_mapping, {&p.k}, p.threads);
}

}  // namespace sparsespan
