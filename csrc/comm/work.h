#pragma once

// An operation under way.

#include <chrono>
#include <exception>
#include <memory>

#include "comm/ledger.h"

namespace sparsespan {

using CommClock = std::chrono::steady_clock;

// A deadline that far-away timeouts cannot overflow.
CommClock::time_point deadline_in(double seconds, CommClock::time_point from = CommClock::now());

// The transport's side of an operation.
class Pending {
 public:
  virtual ~Pending() = default;
  // Moves on whatever can move; true when done. Throws how the operation failed.
  virtual bool test() = 0;
  // Returns when done. Past the deadline: gives the group up and throws comm_timeout.
  virtual void wait(CommClock::time_point deadline) = 0;

  std::int64_t received = 0;  // bytes from other ranks, counted as they come
};

// The caller's handle. It keeps the buffers alive; it belongs to the thread that started the operation and does not
// outlive the communicator. Nothing moves between calls: like MPI without a progress thread, peers wait for this rank's
// next test, wait or operation.
class Work {
 public:
  Work(std::shared_ptr<Pending> pending, std::shared_ptr<Ledger> ledger, std::int64_t number, Request request, int rank,
       int size);
  // True once the operation is done; never waits. Throws how it failed.
  bool test();
  // Waits until it is done. Seconds from now; negative takes the operation's own timeout. Running out of time is final:
  // the whole group is given up (use test to look without obligation).
  void wait(double timeout = -1);

 private:
  // step(begin) returns whether the operation is done.
  template <class F>
  void attempt(F&& step);
  void finish(CommClock::time_point begin);

  std::shared_ptr<Pending> pending_;
  std::shared_ptr<Ledger> ledger_;
  std::shared_ptr<void> keep_;
  std::int64_t number_;
  CommOp op_;
  double timeout_;
  int rank_;
  int size_;
  std::exception_ptr failure_;
};

// Inside a catch block: notes the failure in the ring and hands the ring to the error on its way out.
void note_failure(Ledger& ledger, std::int64_t number, int rank, int size);

}  // namespace sparsespan
