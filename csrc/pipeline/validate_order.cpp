#include <algorithm>
#include <unordered_map>

#include "core/check.h"
#include "pipeline/validate.h"

namespace sparsespan::pipeline {

namespace {

std::string wants(const Need& n) {
  constexpr std::string_view kChannel = "FBXT";
  switch (n.event) {
    case Event::passed: return detail::join("the forward of micro-batch ", n.microbatch, " on stage ", n.stage);
    case Event::backed: return detail::join("the backward of micro-batch ", n.microbatch, " on stage ", n.stage);
    case Event::sampled: return detail::join("the sample of micro-batch ", n.microbatch, " on stage ", n.stage);
    default: return detail::join(n.stage, "RECV_", kChannel[static_cast<int>(n.event) % 4], n.microbatch);
  }
}

void check_indices(const Schedule& s, const Index& index, const Rules& rules) {
  if (rules.shared_indexer.empty()) return;
  std::int64_t layers = 0;
  for (const auto n : rules.stage_layers) layers += n;
  if (static_cast<std::int64_t>(rules.stage_layers.size()) != s.stages ||
      layers != static_cast<std::int64_t>(rules.shared_indexer.size())) {
    refuse_value("validate", "stage_layers", "has ", rules.stage_layers.size(), " stages and ", layers,
                 " layers, needs the ", s.stages, " stages of the schedule and the ", rules.shared_indexer.size(),
                 " layers of index_layers");
  }
  std::int64_t first = 0;
  for (std::int64_t stage = 0; stage < s.stages; first += rules.stage_layers[stage++]) {
    if (rules.stage_layers[stage] == 0 || !rules.shared_indexer[first]) continue;
    if (stage == 0) refuse_value("validate", "index_layers", "start with a shared layer, nobody computed its indices");
    if (!index.communicates() || index.rank_of(stage) == index.rank_of(stage - 1)) continue;
    const std::int64_t r = index.rank_of(stage);
    for (std::size_t t = 0; t < s.ranks[r].size(); ++t) {
      for_each_leaf(s.ranks[r][t], [&](const Action& a) {
        if (is_pass(a.kind) && a.stage == stage && !index.carries_indices(stage, a.microbatch)) {
          refuse_cell(s, r, static_cast<std::int64_t>(t),
                      detail::join("stage ", stage, " starts with layer ", first,
                                   ", which shares the indexer of the layer below, but no ", stage, "RECV_X",
                                   a.microbatch, " hands the indices over"));
        }
      });
    }
  }
}

// Messages of one rank to another share one channel: the n-th send meets the n-th receive.
class Channels {
 public:
  Channels(const Schedule& s, const Index& index)
      : s_(s),
        index_(index),
        ranks_(static_cast<std::int64_t>(s.ranks.size())),
        number_(static_cast<std::size_t>(index.slots()), -1) {}

  void check() {
    each([&](std::int64_t r, std::int64_t t, const Action& a) { number(r, t, a); });
    each([&](std::int64_t r, std::int64_t t, const Action& a) {
      if (is_recv(a.kind)) meet(r, t, a);
    });
    each([&](std::int64_t r, std::int64_t t, const Action& a) {
      const std::int64_t peer = index_.rank_of(index_.peer_stage(a));
      if (!is_send(a.kind) || number_[slot(a)] < lines_[r * ranks_ + peer].taken) return;
      refuse_cell(s_, r, t,
                  detail::join("nobody receives it: rank ", peer, " has no ", index_.peer_stage(a), "RECV_",
                               "FBXT"[channel_of(a.kind)], a.microbatch));
    });
  }

 private:
  struct Line {
    std::vector<const Action*> sends;
    std::int64_t taken = 0;  // receives met so far
  };
  template <class F>
  void each(F&& f) const {
    for (std::int64_t r = 0; r < ranks_; ++r) {
      for (std::size_t t = 0; t < s_.ranks[r].size(); ++t) {
        const Action& a = s_.ranks[r][t];
        if (is_send(a.kind) || is_recv(a.kind)) f(r, static_cast<std::int64_t>(t), a);
      }
    }
  }
  // Of the send that belongs to the message.
  std::int64_t slot(const Action& a) const {
    return index_.slot(sent(channel_of(a.kind)), is_send(a.kind) ? a.stage : index_.peer_stage(a), a.microbatch);
  }

  void number(std::int64_t r, std::int64_t t, const Action& a) {
    const std::int64_t peer = index_.rank_of(index_.peer_stage(a));
    if (peer == r) {
      refuse_cell(s_, r, t,
                  detail::join("stages ", a.stage, " and ", index_.peer_stage(a), " both stand on rank ", r,
                               ": there is no message between them"));
    }
    if (!is_send(a.kind)) return;
    auto& sends = lines_[r * ranks_ + peer].sends;
    number_[slot(a)] = static_cast<std::int64_t>(sends.size());
    sends.push_back(&a);
  }

  void meet(std::int64_t r, std::int64_t t, const Action& a) {
    const std::int64_t channel = index_.rank_of(index_.peer_stage(a)) * ranks_ + r;
    const std::int64_t n = number_[slot(a)];
    Line& line = lines_[channel];
    const std::int64_t next = line.taken++;
    if (n == next) return;
    refuse_cell(
        s_, r, t,
        detail::join("crossed messages: this is receive ", next, " from rank ", channel / ranks_, " but send ", n,
                     "; send ", next, " is ",
                     next < static_cast<std::int64_t>(line.sends.size()) ? to_text(*line.sends[next]) : "missing"));
  }

  const Schedule& s_;
  const Index& index_;
  std::int64_t ranks_;
  std::vector<std::int64_t> number_;              // by slot of the send: its place in its channel
  std::unordered_map<std::int64_t, Line> lines_;  // by from * ranks + to: only neighbours talk
};

}  // namespace

void check_order(const Schedule& s, const Index& index, const Rules& rules) {
  // step + 1 at which an event comes true; 0: never.
  std::vector<std::int32_t> when(static_cast<std::size_t>(index.slots()), 0);
  const auto ranks = static_cast<std::int64_t>(s.ranks.size());
  for (std::int64_t r = 0; r < ranks; ++r) {
    for (std::size_t t = 0; t < s.ranks[r].size(); ++t) {
      for_each_leaf(s.ranks[r][t], [&](const Action& a) {
        for (const Need& made : index.makes(a)) {
          auto& at = when[index.slot(made)];
          if (at != 0) refuse_cell(s, r, static_cast<std::int64_t>(t), "stands here for the second time");
          at = static_cast<std::int32_t>(t) + 1;
        }
      });
    }
  }
  for (std::int64_t r = 0; r < ranks; ++r) {
    for (std::size_t t = 0; t < s.ranks[r].size(); ++t) {
      const auto step = static_cast<std::int64_t>(t);
      for_each_leaf(s.ranks[r][t], [&](const Action& a) {
        for (const Need& n : index.needs(a)) {
          const std::int64_t at = std::int64_t{when[index.slot(n)]} - 1;
          const std::int64_t home = index.rank_of(n.stage);
          if (home == r && at >= 0 && at < step) continue;
          if (home != r && at >= 0 && !(rules.lockstep && at >= step)) continue;
          if (is_recv(a.kind) && at < 0) {
            refuse_cell(s, r, step,
                        detail::join("receives what nobody sends: ", index.peer_stage(a), "SEND_",
                                     "FBXT"[channel_of(a.kind)], a.microbatch, " is missing"));
          }
          refuse_cell(
              s, r, step,
              at < 0 ? detail::join("needs ", wants(n), ", which stands nowhere")
                     : detail::join("needs ", wants(n), ", which stands ", at == step ? "at the same" : "later, at",
                                    " step ", at, home == r ? "" : " on rank ", home == r ? "" : std::to_string(home)));
        }
      });
    }
  }
  check_indices(s, index, rules);
}

void check_messages(const Schedule& s, const Index& index, const Rules&) {
  if (index.communicates()) Channels(s, index).check();
}

}  // namespace sparsespan::pipeline
