#include "pipeline/engine.h"

#include <algorithm>
#include <array>

#include "core/check.h"
#include "pipeline/deadlock.h"

namespace sparsespan::pipeline {

namespace {

constexpr std::array<std::string_view, 3> kTransports = {"overlapped", "buffered", "blocking"};
constexpr double kNever = -1.0;

class Engine {
 public:
  Engine(const Schedule& schedule, const Index& index, Transport transport, const Durations& durations, Link link)
      : schedule_(schedule), index_(index), transport_(transport), durations_(durations), link_(link) {
    const std::size_t ranks = schedule.ranks.size();
    when_.assign(static_cast<std::size_t>(index.slots()), kNever);
    waiters_.assign(when_.size(), -1);
    next_waiter_.assign(ranks, -1);
    lanes_.resize(ranks);
    fetched_.assign(static_cast<std::size_t>(index.stages()), 0.0);
    spans_.busy.assign(ranks, 0.0);
    if (!durations.cells.empty()) {
      for (const auto& list : schedule.ranks) {
        spans_.start.emplace_back(list.size(), 0.0);
        spans_.end.emplace_back(list.size(), 0.0);
      }
    }
  }

  Spans run() {
    const auto ranks = static_cast<std::int32_t>(schedule_.ranks.size());
    for (std::int32_t r = ranks - 1; r >= 0; --r) runnable_.push_back(r);
    while (!runnable_.empty()) {
      const std::int32_t r = runnable_.back();
      runnable_.pop_back();
      advance(r);
    }
    finish_receives();
    std::vector<std::int64_t> at;
    for (const Lane& lane : lanes_) at.push_back(lane.at);
    const Stuck stuck = explain_deadlock(schedule_, index_, transport_, at, [&](const Need& n) { return happened(n); });
    spans_.deadlock = stuck.words;
    spans_.rank = stuck.rank;
    spans_.step = stuck.step;
    return std::move(spans_);
  }

 private:
  struct Lane {
    std::int64_t at = 0;   // the next step of the list
    double compute = 0.0;  // when the compute lane is free
    double send = 0.0;
    double fetch = 0.0;
    double evicted = 0.0;  // a fetch after an eviction finds room from here on
  };

  bool timed() const { return !durations_.cells.empty(); }
  bool happened(const Need& n) const { return when_[index_.slot(n)] != kNever; }

  void make(const Need& n, double when) {
    const std::int64_t slot = index_.slot(n);
    when_[slot] = when;
    for (std::int32_t r = waiters_[slot]; r >= 0;) {
      const std::int32_t next = next_waiter_[r];
      next_waiter_[r] = -1;
      runnable_.push_back(r);
      r = next;
    }
    waiters_[slot] = -1;
  }

  // True when it has happened; else rank r sleeps until it does.
  bool await(std::int32_t r, const Need& n) {
    if (happened(n)) return true;
    const std::int64_t slot = index_.slot(n);
    next_waiter_[r] = waiters_[slot];
    waiters_[slot] = r;
    return false;
  }

  // With lanes of their own, receives hold up nobody: what needs the data waits for the sender.
  Need resolve(Need n) const {
    if (transport_ != Transport::overlapped) return n;
    for (int channel = 0; channel < 4; ++channel) {
      if (n.event != received(channel)) continue;
      Action message;
      message.kind = static_cast<Kind>(static_cast<int>(Kind::recv_f) + 2 * channel);
      message.stage = n.stage;
      return {sent(channel), static_cast<std::int32_t>(index_.peer_stage(message)), n.microbatch};
    }
    return n;
  }

  double transfer(double bytes) const { return link_.bandwidth > 0.0 ? bytes / link_.bandwidth : 0.0; }
  double cell(std::int32_t r, std::int64_t t) const { return timed() ? durations_.cells[r][t] : 0.0; }
  double bytes(std::int32_t r, std::int64_t t) const { return timed() ? durations_.bytes[r][t] : 0.0; }

  void record(std::int32_t r, std::int64_t t, double start, double end) {
    if (!timed()) return;
    spans_.start[r][t] = start;
    spans_.end[r][t] = end;
    spans_.makespan = std::max(spans_.makespan, end);
  }

  void advance(std::int32_t r) {
    Lane& lane = lanes_[r];
    const auto& list = schedule_.ranks[r];
    while (lane.at < static_cast<std::int64_t>(list.size())) {
      const Action& a = list[lane.at];
      bool done = true;
      if (is_send(a.kind)) {
        done = step_send(r, a);
      } else if (is_recv(a.kind)) {
        done = step_receive(r, a);
      } else if (a.kind == Kind::fetch || a.kind == Kind::evict || a.kind == Kind::idle) {
        step_weights(r, a);
      } else {
        done = step_compute(r, a);
      }
      if (!done) return;
      ++lane.at;
    }
  }

  bool step_compute(std::int32_t r, const Action& a) {
    Lane& lane = lanes_[r];
    double start = lane.compute;
    bool ready = true;
    for_each_leaf(a, [&](const Action& leaf) {
      start = std::max(start, fetched_[leaf.stage]);
      for (const Need& raw : index_.needs(leaf)) {
        if (!ready) return;
        const Need n = resolve(raw);
        ready = await(r, n);
        if (!ready) return;
        double when = when_[index_.slot(n)];
        // Without messages in the list the link sits on the edge between two ranks.
        if (!index_.communicates() && index_.rank_of(n.stage) != r) {
          when += link_.latency + transfer(bytes(r, lane.at));
        }
        start = std::max(start, when);
      }
    });
    if (!ready) return false;
    const double end = start + cell(r, lane.at);
    record(r, lane.at, start, end);
    spans_.busy[r] += end - start;
    lane.compute = end;
    for_each_leaf(a, [&](const Action& leaf) {
      for (const Need& made : index_.makes(leaf)) make(made, end);
    });
    return true;
  }

  bool step_send(std::int32_t r, const Action& a) {
    Lane& lane = lanes_[r];
    for (const Need& n : index_.needs(a)) {
      if (!await(r, n)) return false;
    }
    const int channel = channel_of(a.kind);
    double start = lane.compute;
    if (transport_ == Transport::blocking) {
      const Need there{posted(channel), static_cast<std::int32_t>(index_.peer_stage(a)), a.microbatch};
      if (!await(r, there)) return false;
      start = std::max(start, when_[index_.slot(there)]);
    } else if (transport_ == Transport::overlapped) {
      start = std::max(start, lane.send);
    }
    const double occupied = start + transfer(bytes(r, lane.at));
    const double arrival = occupied + link_.latency;
    if (transport_ == Transport::overlapped) {
      lane.send = occupied;
    } else {
      lane.compute = transport_ == Transport::blocking ? arrival : occupied;
    }
    record(r, lane.at, start, arrival);
    make({sent(channel), a.stage, a.microbatch}, arrival);
    return true;
  }

  bool step_receive(std::int32_t r, const Action& a) {
    Lane& lane = lanes_[r];
    const int channel = channel_of(a.kind);
    record(r, lane.at, lane.compute, lane.compute);
    if (transport_ == Transport::overlapped) {
      receives_.push_back({r, lane.at});
      return true;
    }
    const Need here{posted(channel), a.stage, a.microbatch};
    if (!happened(here)) make(here, lane.compute);
    for (const Need& n : index_.needs(a)) {
      if (!await(r, n)) return false;
      const double start = lane.compute;
      lane.compute = std::max(lane.compute, when_[index_.slot(n)]);
      record(r, lane.at, start, lane.compute);
    }
    make({received(channel), a.stage, a.microbatch}, lane.compute);
    return true;
  }

  void step_weights(std::int32_t r, const Action& a) {
    Lane& lane = lanes_[r];
    if (a.kind == Kind::idle) return record(r, lane.at, lane.compute, lane.compute);
    if (a.kind == Kind::evict) {
      lane.evicted = lane.compute;
      return record(r, lane.at, lane.compute, lane.compute);
    }
    const double start = std::max(lane.fetch, lane.evicted);
    lane.fetch = start + cell(r, lane.at);
    fetched_[a.stage] = lane.fetch;
    record(r, lane.at, start, lane.fetch);
  }

  // A receive of its own lane ends when its message has come.
  void finish_receives() {
    for (const auto& [r, t] : receives_) {
      for (const Need& n : index_.needs(schedule_.ranks[r][t])) {
        const double from = timed() ? spans_.start[r][t] : 0.0;
        if (happened(n)) record(r, t, from, std::max(from, when_[index_.slot(n)]));
      }
    }
  }

  const Schedule& schedule_;
  const Index& index_;
  Transport transport_;
  const Durations& durations_;
  Link link_;
  std::vector<double> when_;           // by event slot
  std::vector<std::int32_t> waiters_;  // by event slot: first rank of a chain
  std::vector<std::int32_t> next_waiter_;
  std::vector<Lane> lanes_;
  std::vector<double> fetched_;  // by stage: when its weights are there (a stage lives on one rank)
  std::vector<std::int32_t> runnable_;
  std::vector<std::pair<std::int32_t, std::int64_t>> receives_;
  Spans spans_;
};

}  // namespace

std::string_view name_of(Transport transport) { return kTransports[static_cast<std::size_t>(transport)]; }

Transport parse_transport(std::string_view op, std::string_view text) {
  const auto found = std::find(kTransports.begin(), kTransports.end(), text);
  if (found == kTransports.end()) {
    refuse_value(op, "transport", "is '", text, "', needs 'overlapped', 'buffered' or 'blocking'");
  }
  return static_cast<Transport>(found - kTransports.begin());
}

Spans run(const Schedule& schedule, const Index& index, Transport transport, const Durations& durations, Link link) {
  return Engine(schedule, index, transport, durations, link).run();
}

}  // namespace sparsespan::pipeline
