#include <limits>

#include "core/check.h"
#include "parallel/nearest.h"
#include "parallel/rank_grid.h"

namespace sparsespan {

namespace {

constexpr std::string_view kOp = "rank_grid";
constexpr std::int64_t kMostRanks = 1 << 16;

void require_sizes(const GridParams& p) {
  const std::pair<std::string_view, std::int64_t> sizes[] = {
      {"cp", p.cp}, {"dcp", p.dcp},       {"pp", p.pp},           {"dp", p.dp},
      {"ep", p.ep}, {"moe_dp", p.moe_dp}, {"attn_cp", p.attn_cp}, {"kv_heads", p.kv_heads}};
  for (const auto& [name, size] : sizes) {
    if (size < 1) refuse_value(kOp, name, "is ", size, ", needs at least 1");
  }
  if (p.tp < 0) refuse_value(kOp, "tp", "is ", p.tp, ", needs at least 1, or None for attention TP = dcp");
  if (p.heads < 0) refuse_value(kOp, "heads", "is ", p.heads, ", needs at least 1, or None");
}

void require_world(std::initializer_list<std::int64_t> sizes) {
  std::int64_t world = 1;
  for (const auto size : sizes) world = checked_product(kOp, "world size", world, size);
  if (world > kMostRanks) refuse_value(kOp, "world size", "is ", world, ", needs at most ", kMostRanks);
}

void dcp_divides_tp(const GridParams& p, std::string_view why) {
  if (p.tp % p.dcp == 0) return;
  refuse_value(kOp, "dcp", "is ", p.dcp, ", needs a divisor of tp = ", p.tp, " (", why,
               "); nearest valid dcp: ", nearest_divisors(p.tp, p.dcp),
               "; nearest valid tp: ", nearest_multiples(p.tp, p.dcp));
}

void heads_divide(const GridParams& p, std::int64_t attn_tp) {
  if (p.heads == 0 || p.heads % attn_tp == 0) return;
  refuse_value(kOp, "heads", "is ", p.heads, ", needs a multiple of attention TP = ", attn_tp,
               "; nearest valid attention TP: ", nearest_divisors(p.heads, attn_tp));
}

void native_rules(const GridParams& p) {
  dcp_divides_tp(p, "the DCP group lies inside TP");
  const std::int64_t stage = p.dp * p.cp * p.tp;
  if (stage % p.ep != 0) {
    refuse_value(kOp, "ep", "is ", p.ep, ", needs a divisor of dp * cp * tp = ", stage,
                 "; nearest valid ep: ", nearest_divisors(stage, p.ep));
  }
  heads_divide(p, p.tp);
}

void sglang_moe_rules(const GridParams& p) {
  if (p.tp % p.ep != 0) {
    refuse_value(kOp, "ep", "is ", p.ep, ", needs a divisor of tp = ", p.tp, " (sglang: moe_tp = tp / ep / moe_dp)",
                 "; nearest valid ep: ", nearest_divisors(p.tp, p.ep));
  }
  if (p.tp / p.ep % p.moe_dp != 0) {
    refuse_value(
        kOp, "moe_dp", "is ", p.moe_dp, ", needs a divisor of tp / ep = ", p.tp / p.ep,
        " (sglang: moe_tp = tp / ep / moe_dp); nearest valid moe_dp: ", nearest_divisors(p.tp / p.ep, p.moe_dp));
  }
  if (p.strategy == CpStrategy::zigzag && p.cp > 1 && p.ep != p.tp) {
    refuse_value(kOp, "ep", "is ", p.ep, ", needs ep = tp = ", p.tp,
                 " (sglang: zigzag CP of DSA and MLA forces expert parallelism over the whole TP group), or "
                 "cp_strategy \"interleave\"");
  }
}

void sglang_rules(const GridParams& p) {
  if (p.tp % p.dp != 0) {
    refuse_value(kOp, "dp", "is ", p.dp, ", needs a divisor of tp = ", p.tp,
                 " (sglang: attention DP cuts the TP group); nearest valid dp: ", nearest_divisors(p.tp, p.dp),
                 "; nearest valid tp: ", nearest_multiples(p.tp, p.dp));
  }
  if (p.tp / p.dp % p.cp != 0) {
    refuse_value(kOp, "cp", "is ", p.cp, ", needs a divisor of tp / dp = ", p.tp / p.dp,
                 " (sglang: attn_cp lies inside TP, attn_tp = tp / dp / cp); nearest valid cp: ",
                 nearest_divisors(p.tp / p.dp, p.cp), "; nearest valid tp: ", nearest_multiples(p.tp, p.dp * p.cp));
  }
  dcp_divides_tp(p, "sglang: DCP groups are contiguous chunks of TP");
  const std::int64_t attn_tp = p.tp / p.dp / p.cp;
  if (attn_tp % p.dcp != 0) {
    refuse_value(kOp, "dcp", "is ", p.dcp, ", needs a divisor of attn_tp = tp / dp / cp = ", attn_tp,
                 " (sglang: else heads are gathered from ranks of another DP or CP rank); nearest valid dcp: ",
                 nearest_divisors(attn_tp, p.dcp),
                 "; nearest valid tp: ", nearest_multiples(p.tp, p.dp * p.cp * p.dcp));
  }
  heads_divide(p, attn_tp);
  sglang_moe_rules(p);
}

// Grouped-query attention: DCP takes the place of KV heads that TP would repeat.
void gqa_rules(const GridParams& p, std::string_view engine) {
  if (p.dcp == 1 || p.kv_heads == 1) return;
  if (p.tp <= p.kv_heads) {
    refuse_value(kOp, "tp", "is ", p.tp, ", needs more than kv_heads = ", p.kv_heads, " for DCP (", engine,
                 ": DCP takes the place of repeated KV heads); nearest valid tp: ", p.kv_heads * p.dcp, ", or dcp 1");
  }
  if (p.dcp > p.tp / p.kv_heads) {
    refuse_value(kOp, "dcp", "is ", p.dcp, ", needs at most tp / kv_heads = ", p.tp / p.kv_heads, " (", engine,
                 "); nearest valid dcp: ", nearest_divisors(p.tp, p.tp / p.kv_heads),
                 "; nearest valid tp: ", p.kv_heads * p.dcp);
  }
  if (p.heads != 0 && p.heads / p.kv_heads % p.dcp != 0) {
    refuse_value(kOp, "dcp", "is ", p.dcp, ", needs a divisor of heads / kv_heads = ", p.heads / p.kv_heads, " (",
                 engine, "); nearest valid dcp: ", nearest_divisors(p.heads / p.kv_heads, p.dcp));
  }
}

void vllm_dcp_rules(const GridParams& p) {
  if (p.cp == 1 || p.dcp_axis == DcpAxis::tp) {
    dcp_divides_tp(p, "vllm: DCP reuses the ranks of TP");
  } else if (p.dcp != 1 && p.dcp != p.cp && p.dcp != p.tp * p.cp) {
    refuse_value(kOp, "dcp", "is ", p.dcp, ", needs 1, cp = ", p.cp, " or tp * cp = ", p.tp * p.cp,
                 " (vllm, dcp_axis \"pcp\": DCP is off, spans the PCP axis or the whole TP x PCP block)");
  }
}

void attn_cp_rules(const GridParams& p) {
  if (p.attn_cp == 1) return;
  if (p.cp > 1 || p.dcp > 1) {
    refuse_value(kOp, "attn_cp", "is ", p.attn_cp, ", needs 1 with cp = ", p.cp, " and dcp = ", p.dcp,
                 " (vllm: attention CP inside TP cannot be combined with PCP or DCP); or cp 1 and dcp 1");
  }
  if (p.tp % p.attn_cp != 0) {
    refuse_value(kOp, "attn_cp", "is ", p.attn_cp, ", needs a divisor of tp = ", p.tp,
                 "; nearest valid attn_cp: ", nearest_divisors(p.tp, p.attn_cp),
                 "; nearest valid tp: ", nearest_multiples(p.tp, p.attn_cp));
  }
}

void vllm_rules(const GridParams& p) {
  attn_cp_rules(p);
  vllm_dcp_rules(p);
  if (p.cp > 1 && p.dp > 1) {
    refuse_value(kOp, "dp", "is ", p.dp, ", needs 1 with cp = ", p.cp,
                 " (vllm: prefill context parallelism takes no data parallelism yet); or cp 1");
  }
  const std::int64_t all = p.dp * p.cp * p.tp;
  if (p.ep != 1 && p.ep != all) {
    refuse_value(kOp, "ep", "is ", p.ep, ", needs 1 (off) or dp * cp * tp = ", all,
                 " (vllm: expert parallelism takes every rank of a pipeline stage)");
  }
  heads_divide(p, p.tp / p.attn_cp);
  gqa_rules(p, name_of(p.flavor));
}

void ascend_rules(const GridParams& p) {
  if (p.cp > 1 && p.dcp > 1) {
    refuse_value(kOp, "dcp", "is ", p.dcp, ", needs 1 with cp = ", p.cp,
                 " (vllm_ascend: PCP and DCP are not supported at once); or cp 1");
  }
  if (p.cp > 1 && p.pp > 1) {
    refuse_value(kOp, "pp", "is ", p.pp, ", needs 1 with cp = ", p.cp,
                 " (vllm_ascend: neither the model runner nor the Mooncake connector takes PCP with PP); or cp 1");
  }
  if (p.sparse && p.dcp > 1 && p.dcp != p.tp) {
    refuse_value(kOp, "dcp", "is ", p.dcp, ", needs 1 or tp = ", p.tp,
                 " (vllm_ascend: DCP of the sparse backend takes the whole TP group); sparse=False for dense MLA");
  }
  vllm_rules(p);
}

void refuse_other_flavors_options(const GridParams& p) {
  if (p.flavor != GridFlavor::sglang && p.moe_dp != 1) {
    refuse_value(kOp, "moe_dp", "is ", p.moe_dp, ", needs flavor \"sglang\", has \"", name_of(p.flavor), '"');
  }
  if (p.flavor != GridFlavor::sglang && p.strategy != CpStrategy::none) {
    refuse_value(kOp, "cp_strategy", "needs flavor \"sglang\", has \"", name_of(p.flavor), '"');
  }
  if (p.flavor != GridFlavor::vllm && p.attn_cp != 1) {
    refuse_value(kOp, "attn_cp", "is ", p.attn_cp, ", needs flavor \"vllm\", has \"", name_of(p.flavor),
                 "\"; in sglang cp is that axis");
  }
  if (p.flavor != GridFlavor::vllm && p.dcp_axis != DcpAxis::tp) {
    refuse_value(kOp, "dcp_axis", "is \"pcp\", needs flavor \"vllm\", has \"", name_of(p.flavor), '"');
  }
}

}  // namespace

GridParams checked_grid(GridParams p) {
  require_sizes(p);
  const bool inside = p.flavor == GridFlavor::sglang;  // tp holds dp and cp
  if (p.tp == 0) {
    const std::int64_t around = inside ? checked_product(kOp, "dp * cp", p.dp, p.cp) : 1;
    p.tp = checked_product(kOp, "tp", p.dcp_axis == DcpAxis::pcp ? 1 : p.dcp, around);
  }
  if (inside) {
    require_world({p.tp, p.pp});
  } else {
    require_world({p.tp, p.cp, p.pp, p.dp});
  }
  refuse_other_flavors_options(p);
  switch (p.flavor) {
    case GridFlavor::native: native_rules(p); break;
    case GridFlavor::sglang: sglang_rules(p); break;
    case GridFlavor::vllm: vllm_rules(p); break;
    case GridFlavor::vllm_ascend: ascend_rules(p); break;
  }
  return p;
}

std::string_view name_of(GridFlavor flavor) {
  switch (flavor) {
    case GridFlavor::native: return "native";
    case GridFlavor::sglang: return "sglang";
    case GridFlavor::vllm: return "vllm";
    case GridFlavor::vllm_ascend: return "vllm_ascend";
  }
  return "";
}

GridFlavor grid_flavor(const std::string& name) {
  for (const auto f : {GridFlavor::native, GridFlavor::sglang, GridFlavor::vllm, GridFlavor::vllm_ascend}) {
    if (name == name_of(f)) return f;
  }
  refuse_value(kOp, "flavor", "is \"", name, "\", needs \"native\", \"sglang\", \"vllm\" or \"vllm_ascend\"");
}

DcpAxis dcp_axis(const std::string& name) {
  if (name == "tp") return DcpAxis::tp;
  if (name == "pcp") return DcpAxis::pcp;
  refuse_value(kOp, "dcp_axis", "is \"", name, "\", needs \"tp\" or \"pcp\"");
}

CpStrategy cp_strategy(const std::string& name) {
  if (name.empty()) return CpStrategy::none;
  if (name == "zigzag") return CpStrategy::zigzag;
  if (name == "interleave") return CpStrategy::interleave;
  if (name == "contiguous") return CpStrategy::contiguous;
  const std::string mend = name == "in-seq-split"        ? "; in-seq-split is now called \"zigzag\""
                           : name == "round-robin-split" ? "; round-robin-split is now called \"interleave\""
                                                         : "";
  refuse_value(kOp, "cp_strategy", "is \"", name, "\", needs \"zigzag\", \"interleave\" or \"contiguous\"", mend);
}

}  // namespace sparsespan
