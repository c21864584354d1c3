#pragma once

// What a communicator did: counters per primitive, and the last operations for the post-mortem.

#include <array>
#include <chrono>
#include <cstdint>
#include <deque>
#include <mutex>
#include <string>
#include <vector>

#include "comm/request.h"

namespace sparsespan {

// `bytes` are those that this rank received from other ranks, counted where they are copied or delivered; its own
// share, which never leaves the rank, does not count. `seconds` is time inside calls (start, test, wait): time that a
// transfer overlaps with computation does not count.
struct Counter {
  std::int64_t calls = 0;
  std::int64_t bytes = 0;
  double seconds = 0;
};

// One operation on the time line. Times are steady_clock's own seconds, the same clock on every rank of a machine;
// `end` is negative while it is under way.
struct CommSpan {
  CommOp op = CommOp::barrier;
  int peer = -1;
  bool failed = false;
  std::int64_t bytes = 0;  // received from other ranks, as in Counter
  double start = 0;
  double end = -1;
};

class Ledger {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr std::size_t kRing = 64;
  static constexpr std::size_t kSpans = 1 << 16;  // 3 MB at most; the oldest go first

  // Enters an operation that starts now; the number names it from here on.
  std::int64_t open(const Request& request, Clock::time_point now);
  // `seconds` of the call that ended it.
  void finish(std::int64_t number, CommOp op, std::int64_t received, Clock::time_point now, double seconds);
  void fail(std::int64_t number, const std::string& why);
  void spend(CommOp op, double seconds);
  void count_checks(std::int64_t received);

  std::int64_t issued() const;
  Counter counter(CommOp op) const;
  Counter checks() const;  // the fingerprints that checked mode exchanges, kept apart from the data
  // Operations that have ended, in the order in which they began.
  std::vector<CommSpan> timeline() const;
  void reset();  // counters and time line; the ring and the numbers stay

  // {"rank": r, "size": n, "operations": [...]}, oldest first.
  std::string json(int rank, int size) const;

 private:
  struct Entry {
    std::int64_t number = 0;
    Fingerprint print;
    std::int64_t bytes = 0;
    int peer = -1;
    std::int64_t tag = 0;
    double started = 0;
    double ended = -1;
    std::string state = "started";
  };
  Entry* find(std::int64_t number);
  CommSpan* find_span(std::int64_t number);
  void end(std::int64_t number, std::string state, std::int64_t received, bool failed, double now);
  static double seconds_of(Clock::time_point t) { return std::chrono::duration<double>(t.time_since_epoch()).count(); }
  static std::string entry_json(const Entry& entry);

  mutable std::mutex mutex_;
  double birth_ = seconds_of(Clock::now());
  std::int64_t issued_ = 0;
  std::deque<Entry> ring_;
  std::deque<CommSpan> spans_;  // of the operations from first_span_ on
  std::int64_t first_span_ = 0;
  std::array<Counter, kCommOpCount> counters_{};
  Counter checks_;
};

}  // namespace sparsespan
