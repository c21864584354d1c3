#include "parallel/volume_validate.h"

#include <initializer_list>

#include "core/check.h"

namespace sparsespan {

namespace {

constexpr std::string_view kOp = "volume";
constexpr std::int64_t kMaxRanks = 1 << 20;
constexpr std::int64_t kMaxTokens = std::int64_t{1} << 40;

void one_of(std::string_view argument, std::string_view has, std::initializer_list<std::string_view> needs) {
  std::string list;
  for (const auto text : needs) {
    if (text == has) return;
    list += (list.empty() ? "'" : ", '") + std::string(text) + "'";
  }
  refuse_value(kOp, argument, "is '", has, "', needs one of ", list);
}

void between(std::string_view argument, std::int64_t has, std::int64_t low, std::int64_t high) {
  if (has < low || has > high) refuse_value(kOp, argument, "is ", has, ", needs ", low, " .. ", high);
}

void validate_dims(const AttentionDims& d) {
  const std::pair<std::string_view, std::int64_t> fields[] = {{"hidden", d.hidden}, {"heads", d.heads},
                                                              {"q_lora", d.q_lora}, {"kv_lora", d.kv_lora},
                                                              {"rope", d.rope},     {"nope", d.nope},
                                                              {"v_head", d.v_head}, {"topk", d.topk},
                                                              {"layers", d.layers}, {"index_layers", d.index_layers}};
  for (const auto& [name, value] : fields) between("model." + std::string(name), value, 0, 1 << 20);
  if (d.index_layers > d.layers) {
    refuse_value(kOp, "model.index_layers", "is ", d.index_layers, ", needs at most layers = ", d.layers);
  }
}

void validate_tokens(const VolumeParams& p) {
  std::int64_t tokens = 0;
  for (std::size_t s = 0; s < p.lengths.size(); ++s) {
    if (p.lengths[s] < 0) refuse_value(kOp, "tokens", "has ", p.lengths[s], " at [", s, "], needs >= 0");
    if (p.lengths[s] > kMaxTokens - tokens) refuse_value(kOp, "tokens", "sums to more than ", kMaxTokens);
    tokens += p.lengths[s];
  }
  tokens = 0;
  for (std::size_t s = 0; s < p.contexts.size(); ++s) {
    if (p.contexts[s] < 0) refuse_value(kOp, "context", "has ", p.contexts[s], " at [", s, "], needs >= 0");
    if (p.contexts[s] > kMaxTokens - tokens) refuse_value(kOp, "context", "sums to more than ", kMaxTokens);
    tokens += p.contexts[s];
  }
}

void validate_dcp(const VolumeParams& p) {
  if (p.tp % p.ranks != 0) {
    refuse_value(kOp, "ranks", "is ", p.ranks, ", needs a divisor of tp = ", p.tp, ": dcp shards inside the tp group");
  }
  if (p.dims.heads % p.tp != 0) {
    refuse_value(kOp, "tp", "is ", p.tp, ", needs a divisor of the model's ", p.dims.heads, " heads");
  }
  if (p.dims.index_layers == 0 && p.index_k != "none") {
    refuse_value(kOp, "index_k", "is '", p.index_k, "', but the model has no indexer; leave it out");
  }
  if (p.dims.index_layers > 0 && p.index_k == "none") {
    refuse_value(kOp, "index_k", "is 'none', but the model has an indexer; needs 'replicated', 'sharded', ",
                 "'sharded_routed', 'union' or 'gathered'");
  }
}

void validate_o_proj(const VolumeParams& p) {
  if (p.tp != 1) refuse_value(kOp, "tp", "is ", p.tp, ", '", p.scheme, "' needs 1: its cp group is the tp group");
  if (p.o_proj != "none" && p.dims.heads % p.ranks != 0) {
    refuse_value(kOp, "ranks", "is ", p.ranks, ", o_proj='", p.o_proj, "' needs a divisor of the model's ",
                 p.dims.heads, " heads");
  }
}

}  // namespace

void validate_volume(const VolumeParams& p) {
  if (!is_split(p.scheme)) {
    one_of("scheme", p.scheme,
           {"zigzag", "zigzag_padded", "ceil_chunk", "interleave", "contiguous", "contiguous_flat", "thd_even", "tp",
            "dsa_cp_prefill", "dsa_cp_decode", "layer_shard", "dcp", "block_gather", "block_regather"});
  }
  one_of("combine", p.combine, {"ag_rs", "a2a", "ar"});
  one_of("index_k", p.index_k, {"none", "replicated", "sharded", "sharded_routed", "union", "gathered"});
  one_of("o_proj", p.o_proj, {"none", "gather_weight", "a2a_rs"});
  one_of("restore", p.restore, {"none", "last", "all"});
  between("ranks", p.ranks, 1, kMaxRanks);
  between("tp", p.tp, 1, kMaxRanks);
  between("kv_bytes", p.kv_bytes, 0, 1 << 20);
  between("index_bytes", p.index_bytes, 0, 1 << 20);
  between("activation_bytes", p.activation_bytes, 1, 8);
  between("weight_bytes", p.weight_bytes, 1, 8);
  between("payload_bytes", p.payload_bytes, 2, 4);
  between("page_size", p.page_size, 1, 1 << 20);
  between("interleave", p.interleave, 1, 1 << 20);
  validate_dims(p.dims);
  validate_tokens(p);
  if (p.rows > kMaxTokens) refuse_value(kOp, "rows", "is ", p.rows, ", needs at most ", kMaxTokens);
  if (p.scheme == "dcp") validate_dcp(p);
  if (p.scheme == "dsa_cp_prefill" || p.scheme == "dsa_cp_decode") validate_o_proj(p);
  const bool needs_context =
      p.scheme == "block_gather" || p.scheme == "block_regather" || (p.scheme == "dcp" && p.index_k == "gathered");
  if (needs_context && p.contexts.empty() && !p.lengths.empty()) {
    refuse_value(kOp, "context", "is missing: '", p.scheme, "' gathers cached tokens; pass the cached length of each ",
                 "request");
  }
}

}  // namespace sparsespan
