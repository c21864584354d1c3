#include "parallel/dcp_keys.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "attention/checks.h"
#include "core/parallel.h"
#include "parallel/dcp_remap.h"

namespace sparsespan {

namespace {

constexpr std::int64_t kEntriesPerTask = 1 << 14;

Tensor array_of(void* data, DType dtype, std::initializer_list<std::int64_t> shape, std::int64_t row_stride) {
  Tensor t;
  t.data = data;
  t.dtype = dtype;
  t.rank = static_cast<int>(shape.size());
  std::copy(shape.begin(), shape.end(), t.shape.begin());
  t.strides[t.rank - 1] = 1;
  if (t.rank == 2) t.strides[0] = row_stride;
  t.writable = t.present = true;
  return t;
}

// The arguments behind their checks.
struct Reader {
  std::string_view op;
  const DcpLayout& layout;
  const PagedCache& cache;
  Tensor indices;
  IntView<1> lengths, contexts, requests;
  IntView<2> table;
  bool has_lengths, has_contexts, has_requests;

  std::int64_t rows() const { return indices.shape[0]; }
  std::int64_t width() const { return indices.shape[1]; }
  std::int64_t length(std::int64_t t) const { return has_lengths ? lengths(t) : width(); }
  std::int64_t request(std::int64_t t) const { return has_requests ? requests(t) : 0; }
  // Positions that row t may name: those of its request's pages, or fewer.
  std::int64_t limit(std::int64_t t) const {
    if (request(t) < 0) return 0;
    const std::int64_t room = table.shape[1] * layout.virtual_page_size();
    return has_contexts ? std::min(contexts(t), room) : room;
  }
  bool has_page(std::int64_t t, std::int64_t column) const {
    const std::int64_t page = table(request(t), column);
    return page >= 0 && page < cache.pages;
  }
};

void check_vector(std::string_view op, std::string_view name, const Tensor& t, std::int64_t rows) {
  if (!t) return;
  require_int(op, name, t);
  require_shape(op, name, t, {rows}, "[T]");
}

// Values of [T] metadata: lengths in 0..K, contexts >= 0, requests in the table.
void check_rows(const Reader& r) {
  for (std::int64_t t = 0; t < r.rows(); ++t) {
    if (r.length(t) < 0 || r.length(t) > r.width()) {
      refuse_value(r.op, "topk_length", "is ", r.length(t), " at row ", t, ", needs 0 to K = ", r.width());
    }
    if (r.has_contexts && r.contexts(t) < 0) {
      refuse_value(r.op, "context_lens", "is ", r.contexts(t), " at row ", t, ", needs at least 0");
    }
    if (r.request(t) < -1 || r.request(t) >= r.table.shape[0]) {
      refuse_index(r.op, "row_to_request", "is ", r.request(t), " at row ", t,
                   ", needs -1 or a row of block_table: 0 to ", r.table.shape[0] - 1);
    }
  }
}

[[noreturn]] void refuse_position(const Reader& r, std::int64_t t, std::int64_t j, std::int64_t p) {
  if (p < -1 || p >= r.limit(t)) {
    refuse_index(r.op, "indices", "holds ", p, " at row ", t, ", column ", j, ", needs -1 or a logical position below ",
                 r.limit(t),
                 r.request(t) < 0 ? " (row_to_request is -1: the row has no keys)"
                 : r.has_contexts ? " (the row's context, or what its pages hold)"
                                  : " (what its request's pages hold on all ranks)");
  }
  const std::int64_t column = p / r.layout.virtual_page_size();
  refuse_index(r.op, "block_table", "is ", r.table(r.request(t), column), " at request ", r.request(t), ", column ",
               column, ", position ", p, " of row ", t, " needs a page in 0 to ", r.cache.pages - 1);
}

template <class T>
void check_row(const Reader& r, std::int64_t t) {
  const T* in = r.indices.as<const T, 2>().row(t);
  T low = 0;
  T high = -1;
  for (std::int64_t j = 0; j < r.length(t); ++j) {
    low = std::min(low, in[j]);
    high = std::max(high, in[j]);
  }
  const std::int64_t limit = r.limit(t);
  bool good = low >= -1 && high < limit;
  // Usually all pages up to the last position are there; else it matters which of them are named.
  for (std::int64_t c = 0; good && high >= 0 && c <= high / r.layout.virtual_page_size(); ++c) good = r.has_page(t, c);
  for (std::int64_t j = 0; !good && j < r.length(t); ++j) {
    const std::int64_t p = in[j];
    if (p == -1) continue;
    if (p < -1 || p >= limit || !r.has_page(t, p / r.layout.virtual_page_size())) refuse_position(r, t, j, p);
  }
}

template <class F>
void for_rows(const Reader& r, int threads, const F& f) {
  parallel_rows(r.rows(), r.width(), threads, [&](std::int64_t t, int) { f(t); });
}

// Local rows to slots, for the entries that were kept.
template <class T>
void to_slots(const Reader& r, const T* local, std::int64_t n, std::int64_t t, std::int64_t* slots) {
  const auto page_size = static_cast<std::uint64_t>(r.layout.page_size());
  const std::int64_t request = r.request(t);
  if (std::has_single_bit(page_size)) {
    const int shift = std::countr_zero(page_size);
    for (std::int64_t j = 0; j < n; ++j) {
      const std::int64_t l = local[j];
      slots[j] = (r.table(request, l >> shift) << shift) + (l & static_cast<std::int64_t>(page_size - 1));
    }
    return;
  }
  for (std::int64_t j = 0; j < n; ++j) {
    const std::int64_t l = local[j];
    slots[j] = r.table(request, l / r.layout.page_size()) * r.layout.page_size() + l % r.layout.page_size();
  }
}

Reader checked_reader(std::string_view op, const DcpLayout& layout, const DcpSelection& s, const PagedCache& cache,
                      Validate validate, int threads) {
  const Tensor indices = squeeze_head_axis(op, "indices", s.indices);
  require_int(op, "indices", indices);
  require_shape(op, "indices", indices, {kAny, kAny}, "[T, K]");
  require_inner_contiguous(op, "indices", indices);
  check_vector(op, "topk_length", s.topk_length, indices.shape[0]);
  check_vector(op, "context_lens", s.context_lens, indices.shape[0]);
  check_vector(op, "row_to_request", s.row_to_request, indices.shape[0]);
  require_int(op, "block_table", s.block_table);
  require_shape(op, "block_table", s.block_table, {kAny, kAny}, "[R, W]");
  if (!s.row_to_request && s.block_table.shape[0] != 1) {
    refuse_value(op, "row_to_request", "is None, block_table has ", s.block_table.shape[0],
                 " rows, needs the request of each row");
  }
  const Reader r{op,
                 layout,
                 cache,
                 indices,
                 IntView<1>(s.topk_length),
                 IntView<1>(s.context_lens),
                 IntView<1>(s.row_to_request),
                 IntView<2>(s.block_table),
                 s.topk_length.present,
                 s.context_lens.present,
                 s.row_to_request.present};
  check_rows(r);
  if (validate == Validate::full) {
    for_rows(r, threads, [&](std::int64_t t) {
      indices.dtype == DType::int64 ? check_row<std::int64_t>(r, t) : check_row<std::int32_t>(r, t);
    });
  }
  return r;
}

}  // namespace

DcpKeys::DcpKeys(std::string_view op, const DcpLayout& layout, std::int64_t rank, const DcpSelection& s,
                 const PagedCache& cache, bool lanes, Validate validate, int threads)
    : has_lanes_(lanes), slots_(0), lanes_(0), counts_(0) {
  const Reader r = checked_reader(op, layout, s, cache, validate, threads);
  rows_ = r.rows();
  width_ = r.width();
  lane_type_ = r.indices.dtype;
  slots_ = Scratch<std::int64_t>(rows_ * width_);
  lanes_ = Scratch<std::int64_t>(lanes ? rows_ * width_ : 0);
  counts_ = Scratch<std::int32_t>(rows_);
  const Scratch<std::int64_t> local(rows_ * width_);
  RemapTopkParams remap;
  remap.indices = r.indices;
  remap.topk_length = s.topk_length;
  remap.rank = rank;
  remap.out = array_of(local.data(), lane_type_, {rows_, width_}, width_);
  if (lanes) remap.lanes = array_of(lanes_.data(), lane_type_, {rows_, width_}, width_);
  remap.counts = counts();
  remap.threads = threads;
  remap.validate = Validate::trusted;  // looked at above
  remap_topk(layout, remap);
  for_rows(r, threads, [&](std::int64_t t) {
    std::int64_t* slots = slots_.data() + t * width_;
    if (lane_type_ == DType::int64) {
      to_slots(r, local.data() + t * width_, counts_.data()[t], t, slots);
    } else {
      to_slots(r, remap.out.as<const std::int32_t, 2>().row(t), counts_.data()[t], t, slots);
    }
  });
  for (std::int64_t t = 0; t < rows_; ++t) most_ = std::max<std::int64_t>(most_, counts_.data()[t]);
}

Tensor DcpKeys::slots() const { return array_of(slots_.data(), DType::int64, {rows_, most_}, width_); }
Tensor DcpKeys::counts() const { return array_of(counts_.data(), DType::int32, {rows_}, 1); }
Tensor DcpKeys::lanes() const {
  return has_lanes_ ? array_of(lanes_.data(), lane_type_, {rows_, most_}, width_) : Tensor{};
}

}  // namespace sparsespan
