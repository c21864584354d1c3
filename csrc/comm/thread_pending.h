#pragma once

// One rank's part in a meeting or parcel of a ThreadComm. Everything but test and wait runs under the world's lock.

#include "comm/thread_seat.h"

namespace sparsespan {

class ThreadPending final : public Pending {
 public:
  ThreadPending(std::shared_ptr<ThreadSeat> seat, std::shared_ptr<ThreadGroup> g, int rank, Request r)
      : request(std::move(r)), group(std::move(g)), seat_(std::move(seat)), rank_(rank) {}
  bool test() override;
  void wait(CommClock::time_point deadline) override;

  // Leaves the request where the peers find it.
  void post();
  // Goes as far as the peers allow; gives the lock up while it copies.
  void advance(ThreadWorld::Lock& lock);
  void leave_meeting();  // after it has finished
  void take_back();      // after a failure: peers see nothing of it any more
  bool is_read() const;
  const rank_mismatch* verdict() const;
  std::vector<int> missing() const;   // ranks that have not come
  std::vector<int> unserved() const;  // ranks that have come but not copied
  std::vector<int> gone() const;      // ranks that cannot come any more

  Request request;
  std::shared_ptr<ThreadGroup> group;
  bool finished = false;

 private:
  enum class Stage : std::uint8_t { gather, reduce, copy, linger };
  void post_collective();
  void serve_all();
  void post_parcel();
  void advance_parcel(ThreadWorld::Lock& lock);
  void copy();
  void copy_reduced();
  void reduce();
  int ranks() const { return static_cast<int>(group->members.size()); }

  std::shared_ptr<ThreadSeat> seat_;
  int rank_;
  Stage stage_ = Stage::gather;
  std::shared_ptr<Meeting> meeting_;  // collectives
  std::shared_ptr<Parcel> parcel_;    // send, recv
};

}  // namespace sparsespan
