#include "parallel/transfer_validate.h"

#include <limits>
#include <string>

namespace sparsespan {

namespace {

constexpr std::string_view kOp = "transfer_plan";
constexpr std::int64_t kMaxRanks = std::int64_t{1} << 20;  // a plan lists ranks one by one

std::string named(std::string_view side, std::string_view field) {
  return std::string(side) + "." + std::string(field);
}

void validate_stages(std::string_view side, const KvSide& s, std::int64_t num_layers) {
  if (static_cast<std::int64_t>(s.stages.size()) != s.pp) {
    refuse_value(kOp, named(side, "stages"), "has ", s.stages.size(), " entries, needs one for each of pp = ", s.pp,
                 " stages");
  }
  std::int64_t sum = 0;
  for (std::size_t i = 0; i < s.stages.size(); ++i) {
    if (s.stages[i] < 0) refuse_value(kOp, named(side, "stages"), "has ", s.stages[i], " at [", i, "], needs >= 0");
    if (s.stages[i] > num_layers - sum) {
      refuse_value(kOp, named(side, "stages"), "holds more layers than num_layers = ", num_layers);
    }
    sum += s.stages[i];
  }
  if (sum != num_layers) {
    refuse_value(kOp, named(side, "stages"), "sums to ", sum, ", needs num_layers = ", num_layers);
  }
}

void validate_paging(std::string_view side, const KvSide& s) {
  if (s.page_size < 1) refuse_value(kOp, named(side, "page_size"), "is ", s.page_size, ", needs at least 1");
  if (s.interleave < 1) refuse_value(kOp, named(side, "interleave"), "is ", s.interleave, ", needs at least 1");
  if (s.interleave > s.page_size || s.page_size % s.interleave != 0) {
    refuse_value(kOp, named(side, "interleave"), "is ", s.interleave, ", needs a divisor of page_size = ", s.page_size,
                 "; 1 interleaves tokens, ", s.page_size, " whole pages");
  }
}

void validate_side(std::string_view side, const KvSide& s, std::int64_t num_layers) {
  const std::pair<std::string_view, std::int64_t> sizes[] = {{"tp", s.tp}, {"cp", s.cp}, {"pp", s.pp}, {"dcp", s.dcp}};
  std::int64_t world = 1;
  for (const auto& [field, size] : sizes) {
    if (size < 1) refuse_value(kOp, named(side, field), "is ", size, ", needs at least 1");
    if (size > kMaxRanks) refuse_value(kOp, named(side, field), "is ", size, ", needs at most ", kMaxRanks);
    if (field != "dcp") world = world > kMaxRanks ? world : world * size;
  }
  if (world > kMaxRanks) refuse_value(kOp, side, "has more than ", kMaxRanks, " ranks (pp * cp * tp)");
  if (s.tp % s.dcp != 0) {
    refuse_value(kOp, named(side, "dcp"), "is ", s.dcp, ", needs a divisor of tp = ", s.tp,
                 ": decode context parallelism shards the cache inside the tp group");
  }
  validate_paging(side, s);
  validate_stages(side, s, num_layers);
}

void validate_kinds(const TransferParams& p) {
  const KvSide& a = p.prefill;
  if (a.kv != KvPlacement::interleave && a.dcp > 1) {
    refuse_value(kOp, "prefill.dcp", "is ", a.dcp, ", needs 1 unless prefill.kv is 'interleave'",
                 " (token p lies with rank (p / interleave) % (cp * dcp))");
  }
  if (p.decode.cp != 1) {
    refuse_value(kOp, "decode.cp", "is ", p.decode.cp,
                 ", needs 1: decode shards tokens over dcp, inside tp; use dcp = ", p.decode.cp);
  }
  if (p.decode.kv != KvPlacement::full) {
    refuse_value(kOp, "decode.kv", "is not 'full': on the decode side the placement follows from dcp and interleave;",
                 " leave it out");
  }
}

void validate_requests(const TransferParams& p) {
  if (p.present.size() != p.lengths.size()) {
    refuse_value(kOp, "present", "has ", p.present.size(), " entries, needs one for each of ", p.lengths.size(),
                 " requests");
  }
  for (std::size_t s = 0; s < p.lengths.size(); ++s) {
    if (p.lengths[s] < 0) refuse_value(kOp, "lengths", "has ", p.lengths[s], " at [", s, "], needs >= 0");
    if (p.present[s] < 0 || p.present[s] > p.lengths[s]) {
      refuse_value(kOp, "present", "has ", p.present[s], " at [", s, "], needs 0 .. lengths[", s, "] = ", p.lengths[s],
                   " (tokens, not pages)");
    }
    const std::int64_t layer_bytes = checked_product(kOp, "kv_bytes + index_bytes", p.kv_bytes + p.index_bytes,
                                                     std::max<std::int64_t>(p.num_layers, 1));
    checked_product(kOp, "lengths", p.lengths[s], std::max<std::int64_t>(layer_bytes, 1));
  }
}

void validate_layers(const TransferParams& p) {
  if (p.num_layers < 0) refuse_value(kOp, "num_layers", "is ", p.num_layers, ", needs >= 0");
  const std::int64_t most = std::numeric_limits<std::int32_t>::max();
  if (p.kv_bytes < 0 || p.kv_bytes > most) {
    refuse_value(kOp, "kv_bytes", "is ", p.kv_bytes, ", needs 0 .. ", most, " (per token and layer)");
  }
  if (p.index_bytes < 0 || p.index_bytes > most) {
    refuse_value(kOp, "index_bytes", "is ", p.index_bytes, ", needs 0 .. ", most, " (per token and layer)");
  }
  std::int64_t before = -1;
  for (std::size_t i = 0; i < p.index_layers.size(); ++i) {
    const std::int64_t layer = p.index_layers[i];
    if (layer >= p.num_layers || layer < 0) {
      refuse_index(kOp, "index_layers", "has ", layer, " at [", i, "], needs 0 .. ", p.num_layers - 1);
    }
    if (layer <= before) {
      refuse_value(kOp, "index_layers", "has ", layer, " at [", i, "] after ", before, ", needs ascending layers");
    }
    before = layer;
  }
}

}  // namespace

void validate_transfer(const TransferParams& p) {
  validate_layers(p);
  validate_kinds(p);
  validate_side("prefill", p.prefill, p.num_layers);
  validate_side("decode", p.decode, p.num_layers);
  validate_requests(p);
}

KvPlacement parse_kv_placement(std::string_view argument, std::string_view text) {
  if (text == "full") return KvPlacement::full;
  if (text == "layer_split") return KvPlacement::layer_split;
  if (text == "interleave") return KvPlacement::interleave;
  refuse_value(kOp, argument, "is '", text, "', needs 'full', 'layer_split' or 'interleave'");
}

Spread parse_spread(std::string_view text) {
  if (text == "balanced") return Spread::balanced;
  if (text == "pages") return Spread::pages;
  if (text == "request") return Spread::request;
  if (text == "first") return Spread::first;
  refuse_value(kOp, "spread", "is '", text, "', needs 'balanced', 'pages', 'request' or 'first'");
}

}  // namespace sparsespan
