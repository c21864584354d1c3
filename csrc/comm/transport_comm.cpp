#include "comm/transport_comm.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "comm/poll.h"
#include "comm/transport_pending.h"
#include "core/check.h"

namespace sparsespan {

namespace {

constexpr auto kPoll = std::chrono::milliseconds(50);

// Looks often at first, then ever less often: 20 us to 1 ms.
void rest(int looks) {
  if (looks < 50) {
    std::this_thread::yield();
  } else {
    std::this_thread::sleep_for(std::chrono::microseconds(std::min(20 * (looks - 49), 1000)));
  }
}

template <class E>
[[noreturn]] void throw_about(E error, const Request& request) {
  error.op = name_of(request.op);
  error.sequence = request.stamp.print.sequence;
  throw error;
}

}  // namespace

TransportComm::TransportComm(std::shared_ptr<Transport> transport, bool checked)
    : transport_(std::move(transport)), checked_(checked) {
  if (!transport_) refuse_type("TransportComm", "transport", "is not given");
  const int ranks = transport_->size();
  if (ranks < 1 || transport_->rank() < 0 || transport_->rank() >= ranks) {
    refuse_value("TransportComm", "transport", "says rank ", transport_->rank(), " of ", ranks,
                 ", needs a rank from 0 to size - 1");
  }
}

TransportComm::~TransportComm() {
  if (!pending_.empty()) abandon("dropped with operations under way");
}

void TransportComm::check_alive(const Request& request) const {
  if (poisoned_) {
    comm_aborted error(op_text(request) + ": the group was given up: " + reason_);
    error.ranks = culprit_;
    throw_about(std::move(error), request);
  }
  if (closed_) throw_about(comm_error(op_text(request) + ": this rank has closed the group"), request);
}

std::shared_ptr<Pending> TransportComm::start(Request request) {
  check_alive(request);
  auto pending = std::make_shared<TransportPending>(this, std::move(request), checked_ && size() > 1);
  pending_.push_back(pending);
  progress();
  return pending;
}

bool TransportComm::must_wait(std::size_t place) const {
  const Request& mine = pending_[place]->request;
  for (std::size_t i = 0; i < place; ++i) {
    const Request& other = pending_[i]->request;
    const bool both = is_collective(mine.op) && is_collective(other.op);
    const bool same = mine.op == other.op && mine.peer == other.peer && mine.tag == other.tag;
    if ((both || (!is_collective(mine.op) && same)) && !pending_[i]->last_started()) return true;
  }
  return false;
}

void TransportComm::progress() {
  for (std::size_t i = 0; i < pending_.size(); ++i) {
    const auto pending = pending_[i];
    if (must_wait(i)) continue;
    try {
      pending->advance();
    } catch (comm_error& e) {
      if (e.op.empty()) e.op = name_of(pending->request.op);
      if (e.sequence < 0) e.sequence = pending->request.stamp.print.sequence;
      abandon(e.what());
      throw;
    } catch (...) {
      abandon(op_text(pending->request) + " was interrupted");
      throw;
    }
  }
  std::erase_if(pending_, [](const auto& p) { return p->finished(); });
}

void TransportComm::wait(TransportPending& pending, CommClock::time_point deadline) {
  const auto begin = CommClock::now();
  looked_up_ = begin;
  for (int looks = 0;; ++looks) {
    check_alive(pending.request);
    progress();
    if (pending.finished()) return;
    const auto now = CommClock::now();
    if (now >= deadline) fail_late(pending, std::chrono::duration<double>(now - begin).count());
    look_up(pending.request);
    rest(looks);
  }
}

void TransportComm::fail_late(const TransportPending& pending, double waited) {
  const Request& request = pending.request;
  std::vector<int> ranks;
  if (!is_collective(request.op)) ranks = {request.peer};
  if (pending.meets()) ranks = transport_->late(request.stamp.print.sequence);
  const std::string who = !ranks.empty() && pending.meets() ? ": " + ranks_text(ranks) + " did not come" : "";
  comm_timeout error(
      detail::join(op_text(request), " timed out on rank ", rank(), " of ", size(), " after ", waited, " s", who));
  error.ranks = std::move(ranks);
  abandon(error.what());
  throw_about(std::move(error), request);
}

void TransportComm::look_up(const Request& request) {
  const auto now = CommClock::now();
  if (now - looked_up_ < kPoll) return;
  looked_up_ = now;
  try {
    poll_hook();
  } catch (...) {
    abandon(op_text(request) + " was interrupted");
    throw;
  }
  const auto alarm = transport_->alarm(is_collective(request.op) ? request.stamp.print.sequence : -1);
  if (!alarm) return;
  if (alarm->rank >= 0) culprit_ = {alarm->rank};
  give_up(alarm->reason);
  check_alive(request);
}

void TransportComm::give_up(const std::string& reason) {
  if (!pending_.empty()) {
    // Leaked on purpose: no library can call a transfer back for certain.
    new std::deque<std::shared_ptr<TransportPending>>(std::move(pending_));
    pending_.clear();
  }
  poisoned_ = true;
  reason_ = reason;
}

void TransportComm::abandon(const std::string& reason) {
  const bool first = !poisoned_;
  give_up(first ? reason : reason_);
  if (!first) return;
  try {
    transport_->poison(reason);
  } catch (const std::exception&) {  // the first error is the one to report
    reason_ += " (and telling the transport failed)";
  }
}

void TransportComm::poison(const std::string& reason) { abandon(reason); }

void TransportComm::close() {
  if (closed_) return;
  if (!pending_.empty() && !poisoned_) {
    abandon("this rank left the group with work under way: " + op_text(pending_.front()->request));
  }
  closed_ = true;
  transport_->close();
}

std::shared_ptr<Communicator> TransportComm::form(const Party& party) {
  auto part = transport_->split(party.color, party.key, party.ranks);
  if (!part) return nullptr;
  return std::make_shared<TransportComm>(std::move(part), checked_);
}

}  // namespace sparsespan
