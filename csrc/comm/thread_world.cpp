#include "comm/thread_world.h"

#include <algorithm>
#include <thread>

#include "comm/poll.h"

namespace sparsespan {

namespace {

constexpr auto kPoll = std::chrono::milliseconds(50);
constexpr int kSpins = 4000;  // some 20 to 100 microseconds: a small collective ends within it, a late rank does not

void pause_briefly() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

ThreadWorld::ThreadWorld(int ranks) : may_spin_(ranks <= static_cast<int>(std::thread::hardware_concurrency())) {}

ThreadWorld::Lock ThreadWorld::lock() {
  // Nothing slow happens under the lock, so looking again beats going to sleep.
  for (int i = 0; may_spin_ && i < 200; ++i) {
    if (mutex_.try_lock()) return Lock(mutex_, std::adopt_lock);
    pause_briefly();
  }
  return Lock(mutex_);
}

void ThreadWorld::changed() {
  epoch_.fetch_add(1, std::memory_order_release);
  if (sleepers_ > 0) wake_.notify_all();
}

// With more ranks than cores the core belongs to the rank that is waited for.
bool ThreadWorld::spin(std::uint64_t seen) const {
  for (int i = 0; i < (may_spin_ ? kSpins : 2); ++i) {
    if (epoch_.load(std::memory_order_acquire) != seen) return true;
    if (may_spin_) {
      pause_briefly();
    } else {
      std::this_thread::yield();
    }
  }
  return false;
}

void ThreadWorld::wait(Lock& lock, CommClock::time_point deadline) {
  const std::uint64_t seen = epoch_.load(std::memory_order_relaxed);
  lock.unlock();
  const bool stirred = spin(seen);
  lock = this->lock();
  if (stirred || epoch_.load(std::memory_order_relaxed) != seen) return;
  ++sleepers_;
  const auto status = wake_.wait_until(lock, std::min(deadline, CommClock::now() + kPoll));
  --sleepers_;
  if (status == std::cv_status::no_timeout) return;
  lock.unlock();
  poll_hook();  // may throw: the lock is not held then
  lock = this->lock();
}

void ThreadWorld::poison(int world_rank, const std::string& why) {
  if (poisoned) return;
  poisoned = true;
  culprit = world_rank;
  reason = why;
  changed();
}

}  // namespace sparsespan
