#include <algorithm>
#include <cstring>
#include <vector>

#include "core/parallel.h"
#include "core/scratch.h"
#include "quant/cache_read.h"
#include "quant/cache_write.h"
#include "quant/token.h"

namespace sparsespan {

namespace {

constexpr std::string_view kOp = "gather_indexer_k";
constexpr std::int64_t kRowsPerTask = rows_per_task(kIndexDim);

void require_lengths(const GatherIndexerKParams& p) {
  const IntView<1> cu(p.cu_seq_lens);
  const std::int64_t requests = p.block_table.shape[0];
  if (cu(0) != 0) refuse_value(kOp, "cu_seq_lens", "starts with ", cu(0), ", needs 0");
  const std::int64_t room = checked_product(kOp, "block_table", p.block_table.shape[1], p.page_size);
  for (std::int64_t b = 0; b < requests; ++b) {
    const std::int64_t length = cu(b + 1) - cu(b);
    if (length < 0) {
      refuse_value(kOp, "cu_seq_lens", "falls from ", cu(b), " to ", cu(b + 1), " at request ", b,
                   ", needs ascending values");
    }
    if (length > room) {
      refuse_value(kOp, "cu_seq_lens", "gives request ", b, " ", length, " keys, needs at most the ", room,
                   " that its row of block_table covers");
    }
  }
}

void require_pages(const GatherIndexerKParams& p, std::int64_t pages) {
  const IntView<1> cu(p.cu_seq_lens);
  const IntView<2> table(p.block_table);
  for (std::int64_t b = 0; b < table.shape[0]; ++b) {
    const std::int64_t used = ceil_div(cu(b + 1) - cu(b), p.page_size);
    for (std::int64_t j = 0; j < used; ++j) {
      if (table(b, j) >= 0 && table(b, j) < pages) continue;
      refuse_index(kOp, "block_table", "is ", table(b, j), " in row ", b, ", column ", j,
                   ", within the request's length; needs a page in [0, ", pages, ")");
    }
  }
}

}  // namespace

std::int64_t gather_indexer_k_rows(const GatherIndexerKParams& p) {
  require_layout_kind(kOp, "layout", p.layout, true);
  const PagedCache cache = require_paged_cache(kOp, "cache", p.cache, p.layout, p.page_size);
  require_int(kOp, "block_table", p.block_table);
  require_shape(kOp, "block_table", p.block_table, {kAny, kAny}, "[B, max_blocks]");
  require_int(kOp, "cu_seq_lens", p.cu_seq_lens);
  require_shape(kOp, "cu_seq_lens", p.cu_seq_lens, {p.block_table.shape[0] + 1}, "[B + 1]");
  require_lengths(p);  // even when trusted: it is short, and sizes the output
  if (p.validate == Validate::full) require_pages(p, cache.pages);
  return IntView<1>(p.cu_seq_lens)(p.block_table.shape[0]);
}

void gather_indexer_k(const GatherIndexerKParams& p) {
  const std::int64_t total = gather_indexer_k_rows(p);
  const PagedCache cache = require_paged_cache(kOp, "cache", p.cache, p.layout, p.page_size);
  const TokenCodec codec(cache);
  const KvField& key = codec.info().fields[0];
  const KvField* scale_field = codec.info().scale_field();
  const std::initializer_list<const Tensor*> inputs = {&p.cache, &p.block_table, &p.cu_seq_lens};
  require_output(kOp, "k", p.k, key.dtype, {total, kIndexDim}, "[S, 128]", inputs);
  if (scale_field != nullptr) {
    require_output(kOp, "scale", p.scale, DType::float32, {total}, "[S]", inputs);
    require_writable(kOp, "scale", p.scale, {&p.k});
  } else if (p.scale.present) {
    refuse_value(kOp, "scale", "is given, needs None: layout ", codec.info().name, " has no scales");
  }
  const IntView<2> table(p.block_table);
  const IntView<1> cu_view(p.cu_seq_lens);
  std::vector<std::int64_t> cu(static_cast<std::size_t>(cu_view.shape[0]));
  for (std::size_t b = 0; b < cu.size(); ++b) cu[b] = cu_view(static_cast<std::int64_t>(b));
  parallel_for(ceil_div(total, kRowsPerTask), p.threads, [&](std::int64_t task, int) {
    const std::int64_t first = task * kRowsPerTask;
    std::int64_t b = std::upper_bound(cu.begin(), cu.end(), first) - cu.begin() - 1;
    for (std::int64_t s = first; s < std::min(total, first + kRowsPerTask); ++s) {
      while (s >= cu[b + 1]) ++b;
      const std::int64_t at = s - cu[b];
      const std::int64_t slot = table(b, at / p.page_size) * p.page_size + at % p.page_size;
      std::memcpy(static_cast<std::byte*>(p.k.data) + s * p.k.strides[0] * size_of(key.dtype), codec.place(slot, key),
                  key.bytes());
      if (scale_field != nullptr) static_cast<float*>(p.scale.data)[s] = codec.scale(slot, 0);
    }
  });
}

}  // namespace sparsespan
