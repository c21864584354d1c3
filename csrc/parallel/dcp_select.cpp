#include "parallel/dcp_select.h"

#include <algorithm>
#include <vector>

#include "core/parallel.h"
#include "indexer/check.h"
#include "indexer/select.h"
#include "parallel/dcp_index_gather.h"
#include "parallel/dcp_tables.h"
#include "parallel/topk_exchange.h"

namespace sparsespan {

namespace {

constexpr std::string_view kOp = "dcp_select";
constexpr std::string_view kDesigns[] = {"replicated", "sharded", "sharded_routed", "union", "gathered"};

Tensor int64_array(const std::vector<std::int64_t>& values, std::int64_t rows, std::int64_t columns = 0) {
  Tensor t;
  t.data = const_cast<std::int64_t*>(values.data());
  t.dtype = DType::int64;
  t.rank = columns == 0 ? 1 : 2;
  t.shape = {rows, columns};
  t.strides = {columns == 0 ? 1 : columns, 1};
  t.present = t.writable = true;
  return t;
}

class Selection {
 public:
  Selection(Communicator& comm, const DcpLayout& layout, const DcpSelectParams& p)
      : comm_(comm), layout_(layout), p_(p), out_(p.out.as<std::int32_t, 2>()), options_(p.comm) {
    check_group();
    check_operands();
    set_lengths();
    check_pages();
    options_.plan = plan_hash(detail::join(layout.text(), " dcp_select(index_k=", name_of(p.design), ", topk=", p.topk,
                                           ", layout=", p.index_layout, ")"));
  }

  void run() {
    switch (p_.design) {
      case DcpIndexK::replicated: return replicated();
      case DcpIndexK::sharded: return exchanged(TopkRoute::all);
      case DcpIndexK::sharded_routed: return exchanged(TopkRoute::owner);
      case DcpIndexK::unite: return own();
      case DcpIndexK::gathered: return gathered();
    }
  }

 private:
  std::int64_t rows() const { return p_.weights.shape[0]; }
  std::int64_t requests() const { return p_.block_table.shape[0]; }
  bool whole() const { return p_.design == DcpIndexK::replicated; }

  void check_group() const {
    if (comm_.size() == layout_.world_size()) return;
    refuse_value(kOp, "comm", "has ", comm_.size(), " ranks, needs ", layout_.world_size(), " as ", layout_.text(),
                 " has");
  }

  void check_operands() {
    indexer::ScoreProblem problem;
    indexer::set_queries(kOp, p_.q, p_.weights, true, problem);
    const KvLayout layout = parse_kv_layout(kOp, "index_layout", p_.index_layout);
    const KvLayoutInfo& info = layout_info(layout);
    if (!info.is_index()) {
      refuse_value(kOp, "index_layout", "is \"", p_.index_layout, "\", needs index_132, index_bf16 or index_f32");
    }
    if (problem.dim != info.dim) {
      refuse_value(kOp, "q", "has D = ", problem.dim, ", needs ", info.dim, " for layout ", info.name);
    }
    cache_ = require_paged_cache(kOp, "index_cache", p_.index_cache, layout, layout_.page_size());
    require_int(kOp, "block_table", p_.block_table);
    require_shape(kOp, "block_table", p_.block_table, {kAny, kAny}, "[B, W]");
    if (p_.topk < 1) refuse_value(kOp, "topk", "is ", p_.topk, ", needs at least 1");
    const bool fits = p_.q.rank != 4 || p_.q.shape[0] == requests();
    if (!fits || (requests() == 0 ? rows() != 0 : rows() % requests() != 0)) {
      refuse_value(kOp, "q", "has shape ", p_.q.shape_text(), ", needs B * next_n rows with B = ", requests(),
                   " as in block_table");
    }
    next_n_ = requests() == 0 ? 0 : rows() / requests();
    require_output(kOp, "out", p_.out, DType::int32, {rows(), p_.topk}, "[T, topk]",
                   {&p_.q, &p_.index_cache, &p_.weights, &p_.context_lens, &p_.block_table});
  }

  // What each row sees, in logical positions, and the longest of each request.
  void set_lengths() {
    const Tensor& lens = p_.context_lens;
    require_int(kOp, "context_lens", lens);
    if (lens.rank == 2) {
      require_shape(kOp, "context_lens", lens, {requests(), next_n_}, "[B, next_n]");
    } else {
      require_shape(kOp, "context_lens", lens, {requests()}, "[B] or [B, next_n]");
    }
    const std::int64_t room = p_.block_table.shape[1] * layout_.virtual_page_size();
    indexer::require_int32_columns(kOp, "block_table", room);
    seen_.resize(static_cast<std::size_t>(rows()));
    longest_.assign(static_cast<std::size_t>(requests()), 0);
    for (std::int64_t row = 0; row < rows(); ++row) {
      const std::int64_t b = row / next_n_;
      const std::int64_t t = row % next_n_;
      const std::int64_t given = lens.rank == 2 ? IntView<2>(lens)(b, t) : IntView<1>(lens)(b);
      if (given < 0 || given > room) {
        refuse_value(kOp, "context_lens", "has ", given, " at request ", b, ", needs 0 <= length <= ", room,
                     ", what block_table can name (", p_.block_table.shape[1], " virtual pages of ",
                     layout_.virtual_page_size(), ")");
      }
      seen_[row] = lens.rank == 2 ? given : std::max<std::int64_t>(0, given - next_n_ + t + 1);
      longest_[b] = std::max(longest_[b], seen_[row]);
    }
  }

  // On every rank alike, also for pages of which this rank holds nothing yet.
  void check_pages() const {
    const IntView<2> table(p_.block_table);
    const std::int64_t pages = whole() ? cache_.pages / layout_.world_size() : cache_.pages;
    for (std::int64_t b = 0; b < requests(); ++b) {
      for (std::int64_t c = 0; c < ceil_div(longest_[b], layout_.virtual_page_size()); ++c) {
        if (table(b, c) >= 0 && table(b, c) < pages) continue;
        refuse_index(kOp, "block_table", "has ", table(b, c), " at request ", b, ", column ", c,
                     ", inside the request's context of ", longest_[b], "; needs 0 <= page < ", pages,
                     whole() ? " (index_cache holds N pages for each)" : "");
      }
    }
  }

  // Lengths in this rank's rows.
  std::vector<std::int64_t> local_lengths() const {
    std::vector<std::int64_t> local(seen_);
    for (auto& length : local) length = layout_.local_len(length, comm_.rank());
    return local;
  }

  void paged(const Tensor& table, const std::vector<std::int64_t>& lengths, const indexer::Ranked& ranked) const {
    PagedSelectParams s;
    s.q = p_.q;
    s.kv_cache = p_.index_cache;
    s.weights = p_.weights;
    s.context_lens = int64_array(lengths, requests(), next_n_);
    s.context_lens.rank = 2;
    s.block_table = table;
    s.out = p_.out;
    s.page_size = layout_.page_size();
    s.topk = p_.topk;
    s.layout = p_.index_layout;
    s.nan = p_.nan;
    s.ranked = ranked;
    s.validate = p_.validate;
    s.threads = p_.threads;
    paged_select(s);
  }

  void replicated() const {
    const std::int64_t columns = p_.block_table.shape[1] * layout_.world_size();
    std::vector<std::int64_t> pages(static_cast<std::size_t>(requests() * columns));
    const IntView<2> table(p_.block_table);
    for (std::int64_t b = 0; b < requests(); ++b) {
      for (std::int64_t c = 0; c < columns; ++c) {
        const std::int64_t page = table(b, c / layout_.world_size());
        pages[b * columns + c] = page < 0 ? -1 : page * layout_.world_size() + c % layout_.world_size();
      }
    }
    Tensor whole_table = int64_array(pages, requests(), columns);
    whole_table.rank = 2;
    paged(whole_table, seen_, {});
  }

  void own() const {
    paged(p_.block_table, local_lengths(), {});
    parallel_rows(rows(), p_.topk, p_.threads, [&](std::int64_t t, int) {
      for (std::int64_t j = 0; j < p_.topk && out_(t, j) >= 0; ++j) {
        out_(t, j) = static_cast<std::int32_t>(layout_.logical(comm_.rank(), out_(t, j)));
      }
    });
  }

  void exchanged(TopkRoute route) const {
    TopkPicks picks(kOp, route, comm_.size(), rows(), p_.topk);
    const Scratch<std::uint32_t> keys(rows() * p_.topk);
    std::vector<std::int64_t> nans(static_cast<std::size_t>(rows()), -1);
    std::int64_t* nan_columns = p_.nan == indexer::NanRule::raise ? nans.data() : nullptr;
    paged(p_.block_table, local_lengths(), {keys.data(), nan_columns});
    picks.fill(layout_, comm_.rank(), out_, keys.data(), nan_columns, p_.threads);
    picks.exchange(comm_, out_, options_, p_.threads);
  }

  void gathered() const {
    const GatheredIndexK all =
        gather_index_k(kOp, comm_, layout_, cache_, IntView<2>(p_.block_table), longest_, options_);
    std::vector<std::int64_t> ks(seen_.size());
    std::vector<std::int64_t> ke(seen_.size());
    for (std::int64_t row = 0, base = 0; row < rows(); ++row) {
      if (row > 0 && row % next_n_ == 0) base += longest_[row / next_n_ - 1];
      ks[row] = base;
      ke[row] = base + seen_[row];
    }
    SelectParams s;
    s.q = rows_of_queries();
    s.k = all.k;
    s.k_scale = all.k_scale;
    s.weights = p_.weights;
    s.ks = int64_array(ks, rows());
    s.ke = int64_array(ke, rows());
    s.out = p_.out;
    s.topk = p_.topk;
    s.nan = p_.nan;
    s.validate = p_.validate;
    s.threads = p_.threads;
    select(s);
    parallel_rows(rows(), p_.topk, p_.threads, [&](std::int64_t t, int) {
      for (std::int64_t j = 0; j < p_.topk && out_(t, j) >= 0; ++j) out_(t, j) -= static_cast<std::int32_t>(ks[t]);
    });
  }

  // [B, next_n, Hi, D] as [T, Hi, D]; set_queries has seen that the leading axes lie one behind the other.
  Tensor rows_of_queries() const {
    Tensor q = p_.q;
    if (q.rank != 4) return q;
    q.rank = 3;
    q.shape = {rows(), p_.q.shape[2], p_.q.shape[3]};
    q.strides = {p_.q.strides[p_.q.shape[1] == 1 ? 0 : 1], p_.q.strides[2], p_.q.strides[3]};
    return q;
  }

  Communicator& comm_;
  const DcpLayout& layout_;
  const DcpSelectParams& p_;
  TensorView<std::int32_t, 2> out_;
  CommOptions options_;
  PagedCache cache_;
  std::int64_t next_n_ = 0;
  std::vector<std::int64_t> seen_;     // [T]
  std::vector<std::int64_t> longest_;  // [B]
};

}  // namespace

DcpIndexK parse_dcp_index_k(std::string_view op, std::string_view text) {
  for (int i = 0; i < 5; ++i) {
    if (text == kDesigns[i]) return static_cast<DcpIndexK>(i);
  }
  refuse_value(op, "index_k", "is \"", text,
               "\", needs \"replicated\", \"sharded\", \"sharded_routed\", \"union\" or \"gathered\"");
}

std::string_view name_of(DcpIndexK design) { return kDesigns[static_cast<int>(design)]; }

void dcp_select(Communicator& comm, const DcpLayout& layout, const DcpSelectParams& p) {
  Selection(comm, layout, p).run();
}

}  // namespace sparsespan
