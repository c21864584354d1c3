#include "attention/sparse_mla.h"

#include "attention/checks.h"
#include "attention/engine.h"
#include "attention/index_lists.h"
#include "attention/kv_rows.h"
#include "core/op_scope.h"
#include "core/scratch.h"

namespace sparsespan {

namespace {

constexpr std::string_view kOp = "sparse_mla";
constexpr std::int64_t kPrefetchRows = 4;

class ListedRows final : public KeySource {
 public:
  ListedRows(const KvRows& rows, const IndexLists& lists) : rows_(rows), lists_(lists) {}

  void open(const Tile& tile, TileKeys& keys) const override { lists_.compact(tile.first, keys); }

  void stage(const Tile&, const TileKeys& keys, std::int64_t first, std::int64_t n, float* k, std::int64_t k_stride,
             float*, std::int64_t) const override {
    for (std::int64_t j = 0; j < n; ++j) {
      if (j + kPrefetchRows < n) rows_.prefetch(keys.list[first + j + kPrefetchRows]);
      rows_.load(keys.list[first + j], k + j * k_stride);
    }
  }

  bool narrow() const override { return rows_.narrow(); }

  void stage_narrow(const Tile&, const TileKeys& keys, std::int64_t first, std::int64_t n, std::uint16_t* k,
                    std::int64_t k_stride) const override {
    for (std::int64_t j = 0; j < n; ++j) {
      if (j + kPrefetchRows < n) rows_.prefetch(keys.list[first + j + kPrefetchRows]);
      rows_.load_narrow(keys.list[first + j], k + j * k_stride);
    }
  }

  std::int64_t places(const TileKeys& keys, std::int64_t first, std::int64_t n, const void** rows) const override {
    for (std::int64_t j = 0; j < n; ++j) rows[j] = rows_.address(keys.list[first + j]);
    return rows_.bytes();
  }

 private:
  const KvRows& rows_;
  const IndexLists& lists_;
};

void validate(const SparseMlaParams& p, const Tensor& indices, const KvRows& rows, std::int64_t dim) {
  const std::int64_t count = p.q.shape[0];
  const std::int64_t heads = p.q.shape[1];
  if (p.d_v < 1 || p.d_v > dim) refuse_value(kOp, "d_v", "is ", p.d_v, ", needs 1..", dim, " (the width of q and kv)");
  require_scale(kOp, p.sm_scale);
  require_int(kOp, "indices", indices);
  require_shape(kOp, "indices", indices, {count, kAny}, "[T, K]");
  require_sink(kOp, p.attn_sink, heads);
  require_outputs(kOp, {&p.out, &p.lse, &p.max_logits}, count, heads, p.d_v,
                  {&p.q, &p.q_pe, &p.kv, &p.indices, &p.topk_length, &p.attn_sink, &p.lane_of});
  require_indices(kOp,
                  {.indices = indices,
                   .topk_length = p.topk_length,
                   .lane_of = p.lane_of,
                   .size = rows.size(),
                   .space = p.layout ? "slots of the cache" : "packed rows of kv"},
                  p.validate, p.threads);
}

}  // namespace

void sparse_mla(const SparseMlaParams& p) {
  const OpScope scope;
  const std::int64_t dim = require_queries(kOp, p.q, p.q_pe, p.d_v);
  const KvRows rows(kOp, "kv", p.kv, p.layout, p.page_size, dim);
  const Tensor indices = squeeze_head_axis(kOp, "indices", p.indices);
  const Tensor lane_of = squeeze_head_axis(kOp, "lane_of", p.lane_of);
  SparseMlaParams checked = p;
  checked.lane_of = lane_of;
  validate(checked, indices, rows, dim);
  const std::int64_t count = p.q.shape[0];
  const std::int64_t heads = p.q.shape[1];
  if (heads == 0) return;
  const IndexLists lists(indices, p.topk_length, lane_of);
  const ListedRows source(rows, lists);
  AttentionJob job{.q = p.q,
                   .q_pe = p.q_pe,
                   .dim = dim,
                   .d_v = p.d_v,
                   .shared_values = true,
                   .sm_scale = p.sm_scale,
                   .attn_sink = p.attn_sink ? static_cast<const float*>(p.attn_sink.data) : nullptr,
                   .sink_stride = p.attn_sink.strides[0],
                   .lanes = lane_of.present,
                   .source = &source,
                   .max_keys = indices.shape[1],
                   .list_capacity = indices.shape[1],
                   .out = p.out,
                   .lse = p.lse,
                   .max_logits = p.max_logits,
                   .threads = p.threads};
  const std::int64_t blocks = job.lanes ? 1 : std::max<std::int64_t>(1, ceil_div(job.max_keys, kBlockKeys));
  const std::int64_t take = heads_per_tile(count * blocks, heads, p.threads);
  for (std::int64_t t = 0; t < count; ++t) {
    for (std::int64_t h = 0; h < heads; h += take) {
      job.tiles.push_back({.first = t, .head = h, .heads = std::min(take, heads - h)});
    }
  }
  run_attention(job);
}

}  // namespace sparsespan
