#pragma once

// One thread's place in a ThreadWorld: whatever it has under way, in all of the world's groups. All of a rank's
// operations move whenever it waits for any of them, so ranks may wait in different orders.

#include <list>
#include <memory>
#include <vector>

#include "comm/thread_world.h"

namespace sparsespan {

class ThreadPending;

class ThreadSeat {
 public:
  ThreadSeat(std::shared_ptr<ThreadWorld> world, int world_rank) : world_(std::move(world)), me_(world_rank) {}

  using Lock = ThreadWorld::Lock;
  using Retired = std::vector<std::shared_ptr<ThreadPending>>;

  ThreadWorld& world() const { return *world_; }

  void add(std::shared_ptr<ThreadPending> pending);  // under the lock
  bool test(ThreadPending& pending);
  void wait(ThreadPending& pending, CommClock::time_point deadline);
  // Moves everything as far as it goes; throws how `pending` failed. Under the lock.
  void step(Lock& lock, ThreadPending& pending);
  // Takes the operations of a group out; poisons the world if there are any. Under the lock.
  void leave(Lock& lock, const ThreadGroup& group);
  // What is done or given up is destroyed by whoever takes this, outside the lock: `keep` may need other locks.
  Retired take_retired() { return std::move(retired_); }

 private:
  void progress(Lock& lock);
  // Peers that read this rank's buffers are waited for; then nothing of this rank is left in any group.
  void withdraw(Lock& lock);
  // Poisons the world, withdraws, throws.
  template <class E>
  [[noreturn]] void fail(Lock& lock, E error, const Request& request);
  [[noreturn]] void fail_late(Lock& lock, const ThreadPending& pending, double waited);
  void check_verdicts(Lock& lock);
  void check_alive(Lock& lock, const ThreadPending& pending);

  std::shared_ptr<ThreadWorld> world_;
  int me_;
  std::uint64_t seen_ = 0;  // the epoch when this rank last moved what it could
  std::list<std::shared_ptr<ThreadPending>> pending_;
  Retired retired_;
};

}  // namespace sparsespan
