#include "comm/thread_seat.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "comm/thread_pending.h"
#include "core/check.h"

namespace sparsespan {

void ThreadSeat::add(std::shared_ptr<ThreadPending> pending) { pending_.push_back(std::move(pending)); }

void ThreadSeat::progress(Lock& lock) {
  // advance gives the lock up, but only this thread touches pending_.
  for (auto it = pending_.begin(); it != pending_.end();) {
    (*it)->advance(lock);
    if (!(*it)->finished) {
      ++it;
      continue;
    }
    (*it)->leave_meeting();
    retired_.push_back(std::move(*it));
    it = pending_.erase(it);
  }
}

void ThreadSeat::withdraw(Lock& lock) {
  const auto read = [](const auto& p) { return p->is_read(); };
  while (std::any_of(pending_.begin(), pending_.end(), read)) {
    lock.unlock();
    std::this_thread::yield();  // a peer is inside one copy: it ends by itself
    lock.lock();
  }
  for (auto& p : pending_) {
    p->take_back();
    retired_.push_back(std::move(p));
  }
  pending_.clear();
}

template <class E>
void ThreadSeat::fail(Lock& lock, E error, const Request& request) {
  error.op = name_of(request.op);
  error.sequence = request.stamp.print.sequence;
  world_->poison(me_, error.what());
  withdraw(lock);
  throw error;
}

void ThreadSeat::check_verdicts(Lock& lock) {
  for (const auto& p : pending_) {
    const rank_mismatch* verdict = p->verdict();
    if (verdict == nullptr) continue;
    const rank_mismatch error = *verdict;
    fail(lock, error, Request(p->request));
  }
}

void ThreadSeat::check_alive(Lock& lock, const ThreadPending& pending) {
  if (pending.finished) return;
  check_verdicts(lock);
  if (world_->poisoned) {
    comm_aborted error(op_text(pending.request) + ": the group was given up: " + world_->reason);
    if (world_->culprit >= 0) error.ranks = {world_->culprit};
    fail(lock, std::move(error), Request(pending.request));
  }
  if (auto ranks = pending.gone(); !ranks.empty()) {
    comm_error error(
        detail::join(op_text(pending.request), ": ", ranks_text(ranks), " left the group without taking part"));
    error.ranks = std::move(ranks);
    fail(lock, std::move(error), Request(pending.request));
  }
}

void ThreadSeat::fail_late(Lock& lock, const ThreadPending& pending, double waited) {
  const bool absent = !pending.missing().empty();
  auto late = absent ? pending.missing() : pending.unserved();
  comm_timeout error(detail::join(op_text(pending.request), " timed out after ", waited, " s: ", ranks_text(late),
                                  absent ? " did not come" : " came but did not finish"));
  error.ranks = std::move(late);
  fail(lock, std::move(error), Request(pending.request));
}

void ThreadSeat::step(Lock& lock, ThreadPending& pending) {
  progress(lock);
  check_alive(lock, pending);
  seen_ = world_->epoch();
}

bool ThreadSeat::test(ThreadPending& pending) {
  Retired retired;  // declared first: destroyed after the lock
  auto lock = world_->lock();
  progress(lock);
  check_alive(lock, pending);
  retired = take_retired();
  return pending.finished;
}

void ThreadSeat::wait(ThreadPending& pending, CommClock::time_point deadline) {
  Retired retired;
  const auto begin = CommClock::now();
  world_->spin(seen_);  // nothing has changed since this rank looked: whoever is awaited needs the lock more
  auto lock = world_->lock();
  for (;;) {
    step(lock, pending);
    if (pending.finished) break;
    const auto now = CommClock::now();
    if (now >= deadline) fail_late(lock, pending, std::chrono::duration<double>(now - begin).count());
    try {
      world_->wait(lock, deadline);
    } catch (...) {  // the poll hook: Ctrl-C
      lock = world_->lock();
      world_->poison(me_, op_text(pending.request) + " was interrupted");
      withdraw(lock);
      throw;
    }
  }
  retired = take_retired();
}

void ThreadSeat::leave(Lock& lock, const ThreadGroup& group) {
  progress(lock);
  const auto mine = std::find_if(pending_.begin(), pending_.end(), [&](auto& p) { return p->group.get() == &group; });
  if (mine == pending_.end()) return;
  world_->poison(me_, "a rank left the group with work under way: " + op_text((*mine)->request));
  withdraw(lock);
}

}  // namespace sparsespan
