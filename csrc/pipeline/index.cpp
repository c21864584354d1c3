#include "pipeline/index.h"

#include <algorithm>
#include <tuple>

namespace sparsespan::pipeline {

namespace {

// For each decode micro-batch the micro-batch that samples the token it feeds on: the step before of the same slot or,
// for the first step, the last prefill chunk of a request with the slot's number.
std::vector<std::int32_t> token_sources(const Schedule& s) {
  std::vector<std::tuple<std::int32_t, std::int8_t, std::int64_t, std::int32_t>> steps;  // slot, P/D, start, microbatch
  for (const auto& list : s.ranks) {
    for (const Action& action : list) {
      for_each_leaf(action, [&](const Action& a) {
        if (a.stage == 0 && (a.kind == Kind::decode || a.kind == Kind::prefill)) {
          steps.emplace_back(a.request, a.kind == Kind::decode, a.start, a.microbatch);
        }
      });
    }
  }
  std::sort(steps.begin(), steps.end());
  std::vector<std::int32_t> source(static_cast<std::size_t>(s.microbatches), -1);
  for (std::size_t i = 1; i < steps.size(); ++i) {
    const bool same = std::get<0>(steps[i]) == std::get<0>(steps[i - 1]);
    if (same && std::get<1>(steps[i]) == 1) source[std::get<3>(steps[i])] = std::get<3>(steps[i - 1]);
  }
  return source;
}

}  // namespace

Index::Index(const Schedule& s)
    : stages_(s.stages),
      microbatches_(s.microbatches),
      communicates_(s.has_communication()),
      rank_of_(static_cast<std::size_t>(s.stages), -1) {
  bool indices = false;
  for (std::size_t r = 0; r < s.ranks.size(); ++r) {
    for (const Action& action : s.ranks[r]) {
      for_each_leaf(action, [&](const Action& a) {
        rank_of_[a.stage] = static_cast<std::int32_t>(r);
        indices = indices || a.kind == Kind::recv_x;
      });
    }
  }
  if (s.mode == Mode::serve) token_of_ = token_sources(s);
  const std::int64_t plane = stages_ * microbatches_;
  for (int e = 0; e < kEvents; ++e) {
    // A compute-only schedule has no message events.
    if (e >= static_cast<int>(Event::sent_f) && !communicates_) break;
    base_[e] = slots_;
    slots_ += plane;
  }
  if (!indices) return;
  indices_.assign(static_cast<std::size_t>(plane), false);
  for (const auto& list : s.ranks) {
    for (const Action& a : list) {
      if (a.kind == Kind::recv_x) indices_[a.stage * microbatches_ + a.microbatch] = true;
    }
  }
}

std::int64_t Index::peer_stage(const Action& m) const {
  switch (m.kind) {
    case Kind::send_f:
    case Kind::send_x:
    case Kind::recv_b: return m.stage + 1;
    case Kind::recv_f:
    case Kind::recv_x:
    case Kind::send_b: return m.stage - 1;
    case Kind::send_t: return 0;
    default: return stages_ - 1;
  }
}

void Index::pass_needs(const Action& a, Needs& needs) const {
  if (a.stage > 0) {
    const bool far = communicates_ && rank_of(a.stage - 1) != rank_of(a.stage);
    if (far) {
      needs.add(Event::received_f, a.stage, a.microbatch);
    } else {
      needs.add(Event::passed, a.stage - 1, a.microbatch);
    }
  }
  if (a.kind == Kind::decode && a.stage == 0 && token_of(a.microbatch) >= 0) {
    const bool far = communicates_ && rank_of(stages_ - 1) != rank_of(0);
    needs.add(far ? Event::received_t : Event::sampled, far ? 0 : stages_ - 1, token_of(a.microbatch));
  }
  if (carries_indices(a.stage, a.microbatch)) needs.add(Event::received_x, a.stage, a.microbatch);
}

Needs Index::needs(const Action& a) const {
  Needs needs;
  const std::int32_t m = a.microbatch;
  if (is_pass(a.kind)) {
    pass_needs(a, needs);
  } else if (is_backward(a.kind)) {
    needs.add(Event::passed, a.stage, m);
    if (a.stage + 1 < stages_) {
      const bool far = communicates_ && rank_of(a.stage + 1) != rank_of(a.stage);
      needs.add(far ? Event::received_b : Event::backed, far ? a.stage : a.stage + 1, m);
    }
  } else if (a.kind == Kind::backward_weight) {
    needs.add(Event::backed, a.stage, m);
  } else if (a.kind == Kind::sample) {
    needs.add(Event::passed, a.stage, m);
  } else if (is_send(a.kind)) {
    const int channel = channel_of(a.kind);
    needs.add(channel == 1 ? Event::backed : channel == 3 ? Event::sampled : Event::passed, a.stage, m);
  } else if (is_recv(a.kind)) {
    needs.add(sent(channel_of(a.kind)), peer_stage(a), m);
  }
  return needs;
}

Needs Index::makes(const Action& a) const {
  Needs made;
  const std::int32_t m = a.microbatch;
  if (is_pass(a.kind)) made.add(Event::passed, a.stage, m);
  if (is_backward(a.kind)) made.add(Event::backed, a.stage, m);
  if (a.kind == Kind::backward || a.kind == Kind::backward_weight) made.add(Event::weighted, a.stage, m);
  if (a.kind == Kind::sample) made.add(Event::sampled, a.stage, m);
  if (is_send(a.kind)) made.add(sent(channel_of(a.kind)), a.stage, m);
  if (is_recv(a.kind)) made.add(received(channel_of(a.kind)), a.stage, m);
  return made;
}

}  // namespace sparsespan::pipeline
