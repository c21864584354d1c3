#pragma once

// What the ranks of one ThreadComm share. All of it is guarded by one mutex; data is copied outside it.

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

#include "comm/request.h"
#include "comm/work.h"

namespace sparsespan {

class ThreadPending;

// One collective: every rank leaves its request here, then reads from the others' buffers. A request may be read
// until `copied` has reached the number of ranks, or, once the world is poisoned, while `reading` is above 0.
struct Meeting {
  std::vector<ThreadPending*> posts;
  std::vector<bool> served;  // ranks that have copied
  std::unique_ptr<rank_mismatch> verdict;
  int arrived = 0;
  int reduced = 0;
  int copied = 0;
  int reading = 0;
  int left = 0;
};

// One message.
struct Parcel {
  const Request* send = nullptr;
  const Request* recv = nullptr;
  std::unique_ptr<rank_mismatch> verdict;
  bool reading = false;
  bool done = false;
};

// The whole of what split() cuts up: one fate for all of its groups.
class ThreadWorld {  // NOLINT(clang-analyzer-optin.performance.Padding): two cache lines kept apart on purpose
 public:
  explicit ThreadWorld(int ranks);

  using Lock = std::unique_lock<std::mutex>;
  Lock lock();
  // Wakes everybody who waits; under the lock.
  void changed();
  // Gives up the lock until something changed, at most until `deadline`; calls the poll hook now and then.
  void wait(Lock& lock, CommClock::time_point deadline);
  std::uint64_t epoch() const { return epoch_.load(std::memory_order_acquire); }
  // Looks a while, without the lock, whether the epoch is still the one seen; true when something changed.
  bool spin(std::uint64_t seen) const;
  void poison(int world_rank, const std::string& why);  // under the lock; the first reason stays

  bool poisoned = false;
  int culprit = -1;  // world rank, -1: nobody of the group
  std::string reason;

 private:
  std::mutex mutex_;
  std::condition_variable wake_;
  int sleepers_ = 0;
  bool may_spin_;
  alignas(64) std::atomic<std::uint64_t> epoch_{0};  // spinning on it leaves the lock's cache line alone
};

struct ThreadGroup {
  std::shared_ptr<ThreadWorld> world;
  std::vector<int> members;                                   // world rank of each rank
  std::vector<bool> closed;                                   // ranks that take no further part
  std::map<std::int64_t, std::shared_ptr<Meeting>> meetings;  // by sequence number
  std::map<std::tuple<int, int, std::int64_t>, std::deque<std::shared_ptr<Parcel>>> parcels;  // from, to, tag
  std::map<std::pair<std::int64_t, std::int64_t>, std::shared_ptr<ThreadGroup>> parts;        // split number, color
};

}  // namespace sparsespan
