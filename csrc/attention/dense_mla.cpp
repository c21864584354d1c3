#include "attention/dense_mla.h"

#include <algorithm>
#include <numeric>
#include <optional>

#include "attention/checks.h"
#include "attention/engine.h"
#include "attention/kv_rows.h"
#include "core/op_scope.h"
#include "core/scratch.h"

namespace sparsespan {

namespace {

constexpr std::string_view kOp = "dense_mla";
constexpr std::int64_t kColumns = 128;  // rows of one request share staged keys until a tile has so many columns

// Rows sorted by request, each request's in their order.
struct RowGroups {
  std::vector<std::int64_t> order;  // [T] row ids
  std::vector<std::int64_t> begin;  // [B + 1] places in order

  RowGroups(const IntView<1>& row_to_request, std::int64_t requests)
      : order(static_cast<std::size_t>(row_to_request.shape[0])), begin(static_cast<std::size_t>(requests) + 1, 0) {
    const std::int64_t rows = row_to_request.shape[0];
    for (std::int64_t t = 0; t < rows; ++t) ++begin[static_cast<std::size_t>(row_to_request(t)) + 1];
    std::partial_sum(begin.begin(), begin.end(), begin.begin());
    std::vector<std::int64_t> next(begin.begin(), begin.end() - 1);
    for (std::int64_t t = 0; t < rows; ++t) {
      order[static_cast<std::size_t>(next[static_cast<std::size_t>(row_to_request(t))]++)] = t;
    }
  }
  std::int64_t first(std::int64_t request) const { return begin[static_cast<std::size_t>(request)]; }
  std::int64_t count(std::int64_t request) const { return first(request + 1) - first(request); }
};

class PagedKeys final : public KeySource {
 public:
  PagedKeys(const KvRows& rows, const DenseMlaParams& p, const RowGroups& groups)
      : rows_(rows), lens_(p.context_lens), table_(p.block_table), page_size_(p.page_size), groups_(groups) {}

  void open(const Tile& tile, TileKeys& keys) const override {
    const std::int64_t length = lens_(tile.request);
    const std::int64_t before = length - groups_.count(tile.request) + tile.first - groups_.first(tile.request);
    for (std::int64_t i = 0; i < tile.rows; ++i) {
      keys.limits[i] = std::clamp<std::int64_t>(before + i + 1, 0, length);
    }
    keys.count = keys.limits[tile.rows - 1];
  }

  void stage(const Tile& tile, const TileKeys&, std::int64_t first, std::int64_t n, float* k, std::int64_t k_stride,
             float*, std::int64_t) const override {
    for (std::int64_t j = 0; j < n; ++j) rows_.load(slot(tile, first + j), k + j * k_stride);
  }

  bool narrow() const override { return rows_.narrow(); }

  void stage_narrow(const Tile& tile, const TileKeys&, std::int64_t first, std::int64_t n, std::uint16_t* k,
                    std::int64_t k_stride) const override {
    for (std::int64_t j = 0; j < n; ++j) rows_.load_narrow(slot(tile, first + j), k + j * k_stride);
  }

 private:
  std::int64_t slot(const Tile& tile, std::int64_t position) const {
    return table_(tile.request, position / page_size_) * page_size_ + position % page_size_;
  }

  const KvRows& rows_;
  IntView<1> lens_;
  IntView<2> table_;
  std::int64_t page_size_;
  const RowGroups& groups_;
};

void validate_shapes(const DenseMlaParams& p) {
  const std::int64_t rows = p.q.shape[0];
  require_scale(kOp, p.sm_scale);
  require_int(kOp, "row_to_request", p.row_to_request);
  require_shape(kOp, "row_to_request", p.row_to_request, {rows}, "[T]");
  require_int(kOp, "context_lens", p.context_lens);
  require_shape(kOp, "context_lens", p.context_lens, {kAny}, "[B]");
  require_int(kOp, "block_table", p.block_table);
  require_shape(kOp, "block_table", p.block_table, {p.context_lens.shape[0], kAny}, "[B, pages]");
  require_outputs(kOp, {&p.out, &p.lse, nullptr}, rows, p.q.shape[1], kLatentDim,
                  {&p.q, &p.q_pe, &p.kv_cache, &p.row_to_request, &p.context_lens, &p.block_table});
}

// Always run: what follows indexes by these.
void validate_requests(const DenseMlaParams& p) {
  const IntView<1> request_of(p.row_to_request);
  const IntView<1> lens(p.context_lens);
  const std::int64_t requests = p.context_lens.shape[0];
  for (std::int64_t t = 0; t < request_of.shape[0]; ++t) {
    if (request_of(t) < 0 || request_of(t) >= requests) {
      refuse_index(kOp, "row_to_request", "holds ", request_of(t), " at row ", t, ", needs one of the ", requests,
                   " requests of context_lens");
    }
  }
  const std::int64_t held = checked_product(kOp, "block_table", p.block_table.shape[1], p.page_size);
  for (std::int64_t b = 0; b < requests; ++b) {
    if (lens(b) < 0 || lens(b) > held) {
      refuse_value(kOp, "context_lens", "is ", lens(b), " for request ", b, ", needs 0..", held, " (",
                   p.block_table.shape[1], " pages of ", p.page_size, ")");
    }
  }
}

void validate_table(const DenseMlaParams& p, const KvRows& rows, const RowGroups& groups) {
  if (p.validate == Validate::trusted) return;
  const IntView<1> lens(p.context_lens);
  const IntView<2> table(p.block_table);
  const std::int64_t pages = rows.size() / p.page_size;
  for (std::int64_t b = 0; b < lens.shape[0]; ++b) {
    const std::int64_t used = groups.count(b) == 0 ? 0 : ceil_div(lens(b), p.page_size);
    for (std::int64_t i = 0; i < used; ++i) {
      if (table(b, i) >= 0 && table(b, i) < pages) continue;
      refuse_index(kOp, "block_table", "holds ", table(b, i), " at row ", b, ", column ", i, ", needs one of the ",
                   pages, " pages of kv_cache (request ", b, " has ", lens(b), " tokens)");
    }
  }
}

std::vector<Tile> make_tiles(const DenseMlaParams& p, const RowGroups& groups, std::int64_t blocks) {
  const std::int64_t heads = p.q.shape[1];
  const std::int64_t requests = p.context_lens.shape[0];
  const std::int64_t step = std::max<std::int64_t>(1, kColumns / heads);
  const std::int64_t take = heads_per_tile(ceil_div(p.q.shape[0], step) * blocks, heads, p.threads);
  std::vector<Tile> tiles;
  for (std::int64_t b = 0; b < requests; ++b) {
    for (std::int64_t i = groups.first(b); i < groups.first(b + 1); i += step) {
      const std::int64_t rows = std::min(step, groups.first(b + 1) - i);
      for (std::int64_t h = 0; h < heads; h += take) {
        tiles.push_back({.first = i, .rows = rows, .head = h, .heads = std::min(take, heads - h), .request = b});
      }
    }
  }
  return tiles;
}

}  // namespace

void dense_mla(const DenseMlaParams& p) {
  const OpScope scope;
  const std::int64_t dim = require_queries(kOp, p.q, p.q_pe, kLatentDim);
  const KvRows rows(kOp, "kv_cache", p.kv_cache, p.layout, p.page_size, dim);
  validate_shapes(p);
  validate_requests(p);
  const RowGroups groups(IntView<1>(p.row_to_request), p.context_lens.shape[0]);
  validate_table(p, rows, groups);
  if (p.q.shape[0] == 0 || p.q.shape[1] == 0) return;
  const IntView<1> lens(p.context_lens);
  std::int64_t longest = 0;
  for (std::int64_t b = 0; b < lens.shape[0]; ++b) {
    if (groups.count(b) > 0) longest = std::max(longest, lens(b));
  }
  const PagedKeys source(rows, p, groups);
  run_attention({.q = p.q,
                 .q_pe = p.q_pe,
                 .dim = dim,
                 .d_v = kLatentDim,
                 .shared_values = true,
                 .sm_scale = p.sm_scale,
                 .source = &source,
                 .tiles = make_tiles(p, groups, std::max<std::int64_t>(1, ceil_div(longest, kBlockKeys))),
                 .order = groups.order.data(),
                 .max_keys = longest,
                 .out = p.out,
                 .lse = p.lse,
                 .max_logits = {},
                 .threads = p.threads});
}

}  // namespace sparsespan
