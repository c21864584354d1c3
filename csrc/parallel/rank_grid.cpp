#include "parallel/rank_grid.h"

#include <initializer_list>

#include "core/check.h"
#include "parallel/fingerprint.h"

namespace sparsespan {

namespace {

// Axes from the slowest to the fastest: rank = mixed-radix number of the coordinates.
struct Axes {
  std::vector<std::int64_t> sizes;

  // Ranks in nested loops over the axes in `order`, the last one fastest; chunks of it are an engine's group lists.
  std::vector<std::int32_t> ranks(const std::vector<int>& order) const {
    std::vector<std::int64_t> stride(sizes.size(), 1);
    for (int a = static_cast<int>(sizes.size()) - 2; a >= 0; --a) stride[a] = stride[a + 1] * sizes[a + 1];
    std::vector<std::int64_t> list{0};
    for (const int axis : order) {
      std::vector<std::int64_t> next;
      next.reserve(list.size() * static_cast<std::size_t>(sizes[axis]));
      for (const auto base : list) {
        for (std::int64_t i = 0; i < sizes[axis]; ++i) next.push_back(base + i * stride[axis]);
      }
      list = std::move(next);
    }
    return {list.begin(), list.end()};
  }
};

struct Builder {
  Axes axes;
  std::vector<GridGroups> groups;

  void add(std::string name, std::int64_t size, const std::vector<int>& order) {
    GridGroups g{.name = std::move(name), .size = size, .ranks = axes.ranks(order), .place = {}};
    g.place.resize(g.ranks.size());
    for (std::size_t i = 0; i < g.ranks.size(); ++i) g.place[g.ranks[i]] = static_cast<std::int32_t>(i);
    groups.push_back(std::move(g));
  }
};

// [dp, pp, cp, tp / dcp, dcp]
std::vector<GridGroups> native_groups(const GridParams& p) {
  enum { dp, pp, cp, outer, dcp };
  Builder b{.axes = {{p.dp, p.pp, p.cp, p.tp / p.dcp, p.dcp}}, .groups = {}};
  b.add("tp", p.tp, {dp, pp, cp, outer, dcp});
  b.add("dcp", p.dcp, {dp, pp, cp, outer, dcp});
  b.add("cp", p.cp, {dp, pp, outer, dcp, cp});
  b.add("cp_dcp", p.cp * p.dcp, {dp, pp, outer, cp, dcp});
  b.add("pp", p.pp, {dp, cp, outer, dcp, pp});
  b.add("dp", p.dp, {pp, cp, outer, dcp, dp});
  b.add("ep", p.ep, {pp, dp, cp, outer, dcp});
  return std::move(b.groups);
}

// SGLang initialize_model_parallel: rank = pp_rank * tp + (dp_rank * cp + cp_rank) * attn_tp + attn_tp_rank, and for
// MoE tp_rank = (moe_dp_rank * ep + ep_rank) * moe_tp + moe_tp_rank.
std::vector<GridGroups> sglang_groups(const GridParams& p, std::int64_t attn_tp) {
  enum { pp, dp, cp, tp };
  Builder b{.axes = {{p.pp, p.dp, p.cp, attn_tp}}, .groups = {}};
  b.add("tp", p.tp, {pp, dp, cp, tp});
  b.add("dcp", p.dcp, {pp, dp, cp, tp});
  b.add("cp", p.cp, {pp, dp, tp, cp});
  b.add("attn_tp", attn_tp, {pp, dp, cp, tp});
  b.add("dp", p.dp, {pp, cp, tp, dp});
  enum { moe_dp = 1, ep, moe_tp };
  Builder moe{.axes = {{p.pp, p.moe_dp, p.ep, p.tp / p.ep / p.moe_dp}}, .groups = {}};
  if (p.cp > p.moe_dp) {  // CP partners share tokens before the experts: SGLang takes the CP group for it
    b.add("moe_dp", p.cp, {pp, dp, tp, cp});
  } else {
    moe.add("moe_dp", p.moe_dp, {pp, ep, moe_tp, moe_dp});
  }
  moe.add("ep", p.ep, {pp, moe_dp, moe_tp, ep});
  moe.add("moe_tp", p.tp / p.ep / p.moe_dp, {pp, moe_dp, ep, moe_tp});
  for (auto& g : moe.groups) b.groups.push_back(std::move(g));
  b.add("pp", p.pp, {dp, cp, tp, pp});
  return std::move(b.groups);
}

// vLLM initialize_model_parallel: ranks.reshape(dp, pp, pcp, tp); a group swaps its axis with the last one, so the
// order of the other axes is the engine's and not the natural one.
std::vector<GridGroups> vllm_groups(const GridParams& p) {
  enum { dp, pp, cp, outer, dcp };
  const std::int64_t inner = p.dcp_axis == DcpAxis::tp ? p.dcp : 1;
  Builder b{.axes = {{p.dp, p.pp, p.cp, p.tp / inner, inner}}, .groups = {}};
  b.add("tp", p.tp, {dp, pp, cp, outer, dcp});
  if (p.dcp_axis == DcpAxis::tp) {
    b.add("dcp", p.dcp, {dp, pp, cp, outer, dcp});
  } else {
    b.add("dcp", p.dcp, {dp, pp, outer, dcp, cp});
  }
  b.add("cp", p.cp, {dp, pp, outer, dcp, cp});
  b.add("pp", p.pp, {dp, outer, dcp, cp, pp});
  b.add("dp", p.dp, {outer, dcp, pp, cp, dp});
  b.add("ep", p.ep, {pp, dp, cp, outer, dcp});
  if (p.attn_cp > 1) {  // dcp is 1 then, so TP may be cut anew
    enum { attn_cp = 3, attn_tp };
    b.axes = {{p.dp, p.pp, p.cp, p.attn_cp, p.tp / p.attn_cp}};
    b.add("attn_tp", p.tp / p.attn_cp, {dp, pp, cp, attn_cp, attn_tp});
    b.add("attn_cp", p.attn_cp, {dp, pp, cp, attn_tp, attn_cp});
  }
  if (p.flavor == GridFlavor::vllm_ascend) b.add("dsa_cp", p.tp, {dp, pp, cp, outer, dcp});
  return std::move(b.groups);
}

}  // namespace

RankGrid::RankGrid(const GridParams& params) : p_(checked_grid(params)) {
  attn_tp_ = p_.tp;
  switch (p_.flavor) {
    case GridFlavor::native: groups_ = native_groups(p_); break;
    case GridFlavor::sglang:
      attn_tp_ = p_.tp / p_.dp / p_.cp;
      groups_ = sglang_groups(p_, attn_tp_);
      break;
    case GridFlavor::vllm:
    case GridFlavor::vllm_ascend:
      attn_tp_ = p_.tp / p_.attn_cp;
      groups_ = vllm_groups(p_);
      break;
  }
  world_ = static_cast<std::int64_t>(groups_.front().ranks.size());
}

const GridGroups& RankGrid::group(std::string_view name) const {
  std::string names;
  for (const auto& g : groups_) {
    if (g.name == name) return g;
    names += (names.empty() ? "" : ", ") + g.name;
  }
  refuse_value("rank_grid", "name", "is \"", name, "\", this ", name_of(p_.flavor), " grid has ", names);
}

std::string RankGrid::text() const {
  std::string text = detail::join("rank_grid(tp=", p_.tp, ", cp=", p_.cp, ", dcp=", p_.dcp, ", pp=", p_.pp,
                                  ", dp=", p_.dp, ", ep=", p_.ep, ", flavor='", name_of(p_.flavor), "'");
  if (p_.moe_dp != 1) text += detail::join(", moe_dp=", p_.moe_dp);
  if (p_.attn_cp != 1) text += detail::join(", attn_cp=", p_.attn_cp);
  if (p_.dcp_axis == DcpAxis::pcp) text += ", dcp_axis='pcp'";
  return text + ")";
}

std::string RankGrid::fingerprint() const { return fingerprint_of(text()); }

}  // namespace sparsespan
