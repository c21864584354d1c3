#include "quant/cache_write.h"

#include "core/parallel.h"
#include "core/scratch.h"
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

// One row's columns to float32, at `to`.
void copy_floats(const Tensor& x, std::int64_t t, float* to) {
  const float* from = load_floats(x, t, 0, x.shape[1], to);
  if (from != to) std::copy_n(from, x.shape[1], to);
}

// fill(t, values) puts row t's dim floats.
template <class Fill>
void write_rows(const TokenCodec& codec, const Tensor& slot_mapping, int threads, const Fill& fill) {
  const IntView<1> slots(slot_mapping);
  const std::int64_t rows = slots.shape[0];
  parallel_rows(rows, kKvDim, threads, [&](std::int64_t t, int) {
    const std::int64_t slot = slots(t);
    if (slot < 0) return;
    float values[kKvDim];
    fill(t, values);
    codec.encode(slot, values);
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
  write_rows(codec, p.slot_mapping, p.threads, [&](std::int64_t t, float* values) {
    copy_floats(p.c_kv, t, values);
    copy_floats(p.k_pe, t, values + kLatentDim);
  });
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
  write_rows(codec, p.slot_mapping, p.threads, [&](std::int64_t t, float* values) { copy_floats(p.k, t, values); });
}

}  // namespace sparsespan
