#include "pipeline/deadlock.h"

#include <array>

#include "core/check.h"

namespace sparsespan::pipeline {

namespace {

// What rank r waits for, and on which rank that would have to happen.
struct Wait {
  std::string words;
  std::int32_t peer = -1;
};

std::string describe(const Need& n) {
  constexpr std::array<std::string_view, 4> kWhat = {"the forward pass", "the backward pass", "the weight gradients",
                                                     "the token"};
  constexpr std::array<std::string_view, 3> kVerb = {"SEND_", "RECV_", "RECV_"};
  constexpr std::string_view kChannel = "FBXT";
  const int e = static_cast<int>(n.event);
  if (e < 4) return detail::join(kWhat[e], " of micro-batch ", n.microbatch, " on stage ", n.stage);
  return detail::join(n.stage, kVerb[e / 4 - 1], kChannel[e % 4], n.microbatch);
}

Wait first_wait(const Schedule& s, const Index& index, Transport transport, std::int32_t r, std::int64_t t,
                const std::function<bool(const Need&)>& happened) {
  Wait wait;
  for_each_leaf(s.ranks[r][t], [&](const Action& leaf) {
    if (wait.peer >= 0) return;
    Needs needs = index.needs(leaf);
    if (is_send(leaf.kind) && transport == Transport::blocking) {
      needs.add(posted(channel_of(leaf.kind)), index.peer_stage(leaf), leaf.microbatch);
    }
    for (const Need& n : needs) {
      if (happened(n) || wait.peer >= 0) continue;
      wait.peer = index.rank_of(n.stage);
      wait.words = detail::join("rank ", r, " stands at step ", t, " (", to_text(s.ranks[r][t]), ") and waits for ",
                                describe(n), " on rank ", wait.peer);
    }
  });
  return wait;
}

}  // namespace

Stuck explain_deadlock(const Schedule& s, const Index& index, Transport transport, const std::vector<std::int64_t>& at,
                       const std::function<bool(const Need&)>& happened) {
  const auto ranks = static_cast<std::int32_t>(s.ranks.size());
  const auto stands = [&](std::int32_t r) { return at[r] < static_cast<std::int64_t>(s.ranks[r].size()); };
  std::int32_t r = 0;
  while (r < ranks && !stands(r)) ++r;
  if (r == ranks) return {};
  // Follow the waits: either they come back (a cycle) or they end at a rank that has nothing left to do.
  std::vector<std::int64_t> seen(static_cast<std::size_t>(ranks), -1);
  std::vector<Wait> chain;
  std::vector<std::int32_t> path;
  while (r >= 0 && stands(r) && seen[r] < 0) {
    seen[r] = static_cast<std::int64_t>(path.size());
    path.push_back(r);
    chain.push_back(first_wait(s, index, transport, r, at[r], happened));
    r = chain.back().peer;
  }
  const bool cycle = r >= 0 && seen[r] >= 0;
  Stuck stuck;
  const std::size_t from = cycle ? static_cast<std::size_t>(seen[r]) : path.size() - 1;
  stuck.rank = path[from];
  stuck.step = at[stuck.rank];
  for (std::size_t i = from; i < chain.size(); ++i) stuck.words += (i > from ? "; " : "") + chain[i].words;
  stuck.words += cycle
                     ? detail::join(" - a cycle of ", path.size() - from, path.size() - from == 1 ? " rank" : " ranks")
                     : std::string(", where it never happens");
  return stuck;
}

}  // namespace sparsespan::pipeline
