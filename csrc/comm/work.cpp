#include "comm/work.h"

#include <algorithm>
#include <utility>

namespace sparsespan {

CommClock::time_point deadline_in(double seconds, CommClock::time_point from) {
  // A year is forever, and fits.
  const double bounded = std::clamp(seconds, 0.0, 3.15e7);
  return from + std::chrono::duration_cast<CommClock::duration>(std::chrono::duration<double>(bounded));
}

void note_failure(Ledger& ledger, std::int64_t number, int rank, int size) {
  try {
    throw;
  } catch (comm_error& e) {
    ledger.fail(number, e.what());
    if (e.record.empty()) e.record = ledger.json(rank, size);
  } catch (const std::exception& e) {
    ledger.fail(number, e.what());
  } catch (...) {
    ledger.fail(number, "interrupted");
  }
}

Work::Work(std::shared_ptr<Pending> pending, std::shared_ptr<Ledger> ledger, std::int64_t number, Request request,
           int rank, int size)
    : pending_(std::move(pending)),
      ledger_(std::move(ledger)),
      keep_(std::move(request.keep)),
      number_(number),
      op_(request.op),
      timeout_(request.timeout),
      rank_(rank),
      size_(size) {}

void Work::finish(CommClock::time_point begin) {
  const auto now = CommClock::now();
  ledger_->finish(number_, op_, pending_->received, now, std::chrono::duration<double>(now - begin).count());
  pending_.reset();
  keep_.reset();
}

template <class F>
void Work::attempt(F&& step) {
  if (failure_) std::rethrow_exception(failure_);
  const auto begin = CommClock::now();
  const auto spend = [&] { ledger_->spend(op_, std::chrono::duration<double>(CommClock::now() - begin).count()); };
  try {
    if (step(begin)) return finish(begin);
  } catch (...) {
    spend();
    note_failure(*ledger_, number_, rank_, size_);
    failure_ = std::current_exception();
    throw;
  }
  spend();
}

bool Work::test() {
  if (!pending_) return !failure_ || (std::rethrow_exception(failure_), false);
  attempt([&](CommClock::time_point /*begin*/) { return pending_->test(); });
  return !pending_;
}

void Work::wait(double timeout) {
  if (!pending_ && !failure_) return;
  attempt([&](CommClock::time_point begin) {
    pending_->wait(deadline_in(timeout < 0 ? timeout_ : timeout, begin));
    return true;
  });
}

}  // namespace sparsespan
