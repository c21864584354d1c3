#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/parallel.h"
#include "indexer/check.h"

namespace sparsespan::indexer {

namespace {

// T = B * next_n rows, request by request.
std::int64_t rows_per_request(std::string_view op, const Tensor& q, std::int64_t requests, std::int64_t rows) {
  if (q.rank == 4 && q.shape[0] != requests) {
    refuse_value(op, "q", "has shape ", q.shape_text(), ", needs [B, next_n, Hi, D] with B = ", requests,
                 " as in block_table");
  }
  if (requests == 0 ? rows != 0 : rows % requests != 0) {
    refuse_value(op, "q", "has ", rows, " rows, needs a multiple of B = ", requests, " as in block_table");
  }
  return requests == 0 ? 0 : rows / requests;
}

// The lengths that the rows see: one number per request is the length at its last row, each row before sees one less.
void set_lengths(std::string_view op, const PagedKeys& keys, std::int64_t next_n, ScoreProblem& p) {
  const Tensor& lens = keys.context_lens;
  const std::int64_t requests = keys.block_table.shape[0];
  require_int(op, "context_lens", lens);
  if (lens.rank == 2) {
    require_shape(op, "context_lens", lens, {requests, next_n}, "[B, next_n]");
  } else {
    require_shape(op, "context_lens", lens, {requests}, "[B] or [B, next_n]");
  }
  const std::int64_t capacity = checked_product(op, "block_table", keys.block_table.shape[1], p.keys.cache.page_size);
  p.windows.resize(p.rows);
  for (std::int64_t row = 0; row < p.rows; ++row) {
    const std::int64_t b = row / next_n;
    const std::int64_t t = row % next_n;
    const std::int64_t given = lens.rank == 2 ? IntView<2>(lens)(b, t) : IntView<1>(lens)(b);
    if (given < 0 || given > capacity) {
      refuse_value(op, "context_lens", "has ", given, " at request ", b, ", needs 0 <= length <= ", capacity,
                   ", what block_table can name (", keys.block_table.shape[1], " pages of ", p.keys.cache.page_size,
                   ")");
    }
    const std::int64_t length = lens.rank == 2 ? given : std::max<std::int64_t>(0, given - next_n + t + 1);
    p.windows[row] = {0, length};
    p.columns = std::max(p.columns, length);
  }
}

void require_pages(std::string_view op, const ScoreProblem& p, std::int64_t request, std::int64_t length) {
  const PagedCache& cache = p.keys.cache;
  for (std::int64_t block = 0; block < ceil_div(length, cache.page_size); ++block) {
    const std::int64_t page = p.keys.block_table(request, block);
    if (page < 0 || page >= cache.pages) {
      refuse_index(op, "block_table", "has ", page, " at request ", request, ", block ", block,
                   ", inside the request's length of ", length, "; needs 0 <= page < ", cache.pages);
    }
  }
}

// Of finite numbers that are not negative, the bits as integers grow with the value; everything else, -0 apart, has
// greater bits.
bool all_good(const std::byte* scales, std::int64_t n) {
  std::uint32_t worst = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    std::uint32_t bits = 0;  // pages may start at any byte
    std::memcpy(&bits, scales + i * sizeof(bits), sizeof(bits));
    worst = std::max(worst, bits == 0x80000000U ? 0U : bits);
  }
  return worst < 0x7F800000U;
}

// Tokens [first, last) of a request, from the border of a page on.
struct Stretch {
  std::int64_t request;
  std::int64_t first;
  std::int64_t last;
};

void require_scales(std::string_view op, const ScoreProblem& p, const Stretch& at) {
  constexpr std::int64_t kLine = 64;
  constexpr std::int64_t kAhead = 8;  // pages: they lie anywhere, and one alone waits for memory
  const std::int64_t page_size = p.keys.cache.page_size;
  for (std::int64_t first = at.first; first < at.last; first += page_size) {
    if (const std::int64_t next = first + kAhead * page_size; next < at.last) {
      const std::byte* soon = p.keys.cache.tail(p.keys.slot(at.request, next), sizeof(float));
      for (std::int64_t i = 0; i < page_size * 4; i += kLine) __builtin_prefetch(soon + i);
    }
    const std::byte* scales = p.keys.cache.tail(p.keys.slot(at.request, first), sizeof(float));
    if (all_good(scales, std::min(page_size, at.last - first))) continue;
    for (std::int64_t s = first; s < at.last; ++s) {
      const float scale = p.keys.scale(at.request, s);
      if (scale >= 0.0F && std::isfinite(scale)) continue;
      refuse_value(op, "kv_cache", "has a scale of ", scale, " at request ", at.request, ", position ", s,
                   ", needs finite scales that are not negative");
    }
  }
}

// Of scales that cannot be, the first one of the first request is named, by however many threads they are looked at.
void require_paged_scales(std::string_view op, const ScoreProblem& p, const std::vector<std::int64_t>& lengths,
                          int threads) {
  constexpr std::int64_t kPages = 512;  // 40 us
  if (!p.keys.scaled()) return;
  // A page longer than any request is a stretch of its own; in a cache without pages it may have any size.
  const std::int64_t step = kPages * std::min(p.keys.cache.page_size, std::int64_t{1} << 31);
  std::vector<Stretch> stretches;
  for (std::size_t b = 0; b < lengths.size(); ++b) {
    for (std::int64_t first = 0; first < lengths[b]; first += step) {
      stretches.push_back({static_cast<std::int64_t>(b), first, std::min(lengths[b], first + step)});
    }
  }
  parallel_for(static_cast<std::int64_t>(stretches.size()), threads,
               [&](std::int64_t i, int) { require_scales(op, p, stretches[i]); });
}

}  // namespace

void set_paged_keys(std::string_view op, const PagedKeys& keys, const Tensor& q, Validate validate, ScoreProblem& p) {
  const KvLayout layout = parse_kv_layout(op, "layout", keys.layout);
  const KvLayoutInfo& info = layout_info(layout);
  if (!info.is_index()) {
    refuse_value(op, "layout", "is \"", keys.layout, "\", needs an index layout: index_132, index_bf16 or index_f32");
  }
  if (p.dim != info.dim) refuse_value(op, "q", "has D = ", p.dim, ", needs ", info.dim, " for layout ", info.name);
  p.keys.paged = true;
  p.keys.cache = require_paged_cache(op, "kv_cache", keys.kv_cache, layout, keys.page_size);
  p.keys.type = layout == KvLayout::index_132    ? Narrow::e4m3
                : layout == KvLayout::index_bf16 ? Narrow::bfloat16
                                                 : Narrow::float32;
  require_int(op, "block_table", keys.block_table);
  require_shape(op, "block_table", keys.block_table, {kAny, kAny}, "[B, max_blocks]");
  p.keys.block_table = IntView<2>(keys.block_table);
  const std::int64_t requests = keys.block_table.shape[0];
  const std::int64_t next_n = rows_per_request(op, q, requests, p.rows);
  set_lengths(op, keys, next_n, p);
  require_int32_columns(op, "context_lens", p.columns);
  std::vector<std::int64_t> longest(next_n > 0 ? requests : 0);
  for (std::int64_t b = 0; b < static_cast<std::int64_t>(longest.size()); ++b) {
    for (std::int64_t row = b * next_n; row < (b + 1) * next_n; ++row) {
      longest[b] = std::max(longest[b], p.windows[row].end);
    }
    require_pages(op, p, b, longest[b]);
    for (std::int64_t row = b * next_n; row < (b + 1) * next_n; row += kGroupRows) {
      p.groups.push_back({row, std::min((b + 1) * next_n, row + kGroupRows), b});
    }
  }
  if (validate == Validate::full) require_paged_scales(op, p, longest, keys.threads);
  p.choose_kernels();
}

}  // namespace sparsespan::indexer
