#include "parallel/dcp_capacity.h"

#include "core/scratch.h"
#include "parallel/nearest.h"
#include "quant/layout.h"

namespace sparsespan {

namespace {

constexpr std::string_view kOp = "dcp_layout.capacity";
constexpr std::string_view kHeads = "dcp_layout.heads";

void at_least(std::string_view op, std::string_view argument, std::int64_t value, std::int64_t lowest) {
  if (value < lowest) refuse_value(op, argument, "is ", value, ", needs at least ", lowest);
}

void validate(const DcpLayout& layout, const DcpCapacityParams& p) {
  at_least(kOp, "memory_bytes", p.memory_bytes, 0);
  at_least(kOp, "reserved_bytes", p.reserved_bytes, 0);
  at_least(kOp, "kv_layout", p.kv_bytes, 1);
  at_least(kOp, "index_layout", p.index_bytes, 0);
  at_least(kOp, "kv_layers", p.kv_layers, 1);
  at_least(kOp, "index_layers", p.index_layers, 0);
  at_least(kOp, "reserved_pages", p.reserved_pages, 0);
  if (p.reserved_bytes > p.memory_bytes) {
    refuse_value(kOp, "reserved_bytes", "is ", p.reserved_bytes, ", needs at most memory_bytes = ", p.memory_bytes);
  }
  if (p.index_shards < 1 || layout.world_size() % p.index_shards != 0) {
    refuse_value(kOp, "index_shards", "is ", p.index_shards, ", needs a divisor of world_size = ", layout.world_size(),
                 "; nearest valid: ", nearest_divisors(layout.world_size(), p.index_shards));
  }
}

}  // namespace

DcpCapacity dcp_capacity(const DcpLayout& layout, const DcpCapacityParams& p) {
  validate(layout, p);
  const std::int64_t n = layout.world_size();
  const std::int64_t b = layout.page_size();
  const std::int64_t kv = checked_product(kOp, "KV bytes", p.kv_bytes, p.kv_layers);
  const std::int64_t index = checked_product(kOp, "index bytes", p.index_bytes, p.index_layers);
  const std::int64_t per_row = checked_product(kOp, "index bytes", index, n / p.index_shards);
  DcpCapacity c;
  if (__builtin_add_overflow(checked_product(kOp, "page bytes", kv, b), checked_product(kOp, "page bytes", per_row, b),
                             &c.page_bytes)) {
    refuse_value(kOp, "page bytes", "overflow 64 bits");
  }
  const std::int64_t memory = p.memory_bytes - p.reserved_bytes;
  c.pages = std::max<std::int64_t>(0, memory / c.page_bytes - p.reserved_pages);
  c.tokens_per_rank = c.pages * b;
  c.tokens = checked_product(kOp, "tokens", c.tokens_per_rank, n);
  c.baseline_tokens = std::max<std::int64_t>(0, memory / ((kv + index) * b) - p.reserved_pages) * b;
  c.gain = static_cast<double>(kv + index) / (static_cast<double>(kv) / static_cast<double>(n) +
                                              static_cast<double>(index) / static_cast<double>(p.index_shards));
  return c;
}

std::int64_t kv_bytes_of(std::string_view op, std::string_view argument, const std::string& name, bool index) {
  std::string known;
  for (int i = 0; i < kKvLayoutCount; ++i) {
    const auto& layout = layout_info(static_cast<KvLayout>(i));
    if (layout.is_index() != index) continue;
    if (layout.name == name) return layout.bytes_per_token();
    known += detail::join(known.empty() ? "" : ", ", '"', layout.name, '"');
  }
  refuse_value(op, argument, "is \"", name, "\", needs one of ", known, " or bytes per token and layer");
}

DcpHeads dcp_heads(const DcpLayout& layout, std::int64_t heads, std::int64_t tp, std::int64_t multiple) {
  at_least(kHeads, "heads", heads, 1);
  at_least(kHeads, "tp", tp, 1);
  at_least(kHeads, "multiple", multiple, 1);
  if (heads % tp != 0) {
    refuse_value(kHeads, "tp", "is ", tp, ", needs a divisor of heads = ", heads,
                 "; nearest valid tp: ", nearest_divisors(heads, tp));
  }
  if (tp % layout.world_size() != 0) {
    refuse_value(kHeads, "tp", "is ", tp, ", needs a multiple of the DCP size ", layout.world_size(),
                 " (the DCP group lies inside TP); nearest valid tp: ", nearest_multiples(tp, layout.world_size()));
  }
  DcpHeads h;
  h.local = heads / tp;
  h.gathered = h.local * layout.world_size();
  h.padded = ceil_div(h.gathered, multiple) * multiple;
  return h;
}

}  // namespace sparsespan
