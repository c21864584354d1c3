#include "comm/thread_comm.h"

#include <utility>

#include "comm/thread_pending.h"
#include "core/check.h"

namespace sparsespan {

ThreadComm::ThreadComm(std::shared_ptr<ThreadGroup> group, std::shared_ptr<ThreadSeat> seat, int rank)
    : group_(std::move(group)), seat_(std::move(seat)), rank_(rank) {}

ThreadComm::~ThreadComm() { ThreadComm::close(); }

std::vector<std::shared_ptr<ThreadComm>> ThreadComm::make(int ranks) {
  if (ranks < 1 || ranks > 1024) refuse_value("ThreadComm", "n", "is ", ranks, ", needs 1 to 1024 ranks");
  auto group = std::make_shared<ThreadGroup>();
  group->world = std::make_shared<ThreadWorld>(ranks);
  group->closed.resize(ranks);
  for (int r = 0; r < ranks; ++r) group->members.push_back(r);
  std::vector<std::shared_ptr<ThreadComm>> comms;
  comms.reserve(ranks);
  for (int r = 0; r < ranks; ++r) {
    comms.push_back(std::make_shared<ThreadComm>(group, std::make_shared<ThreadSeat>(group->world, r), r));
  }
  return comms;
}

std::shared_ptr<Pending> ThreadComm::start(Request request) {
  ThreadSeat::Retired retired;  // declared first: destroyed after the lock
  auto pending = std::make_shared<ThreadPending>(seat_, group_, rank_, std::move(request));
  auto lock = seat_->world().lock();
  if (closed_) throw comm_error(op_text(pending->request) + ": this rank has closed the group");
  if (!seat_->world().poisoned) {
    seat_->add(pending);
    pending->post();
  }
  seat_->step(lock, *pending);
  retired = seat_->take_retired();
  return pending;
}

std::shared_ptr<Communicator> ThreadComm::form(const Party& party) {
  if (party.ranks.empty()) return nullptr;
  const auto lock = seat_->world().lock();
  auto& part = group_->parts[{party.number, party.color}];
  if (!part) {
    part = std::make_shared<ThreadGroup>();
    part->world = group_->world;
    part->closed.resize(party.ranks.size());
    for (const int r : party.ranks) part->members.push_back(group_->members[r]);
  }
  return std::make_shared<ThreadComm>(part, seat_, party.rank);
}

void ThreadComm::poison(const std::string& reason) {
  const auto lock = seat_->world().lock();
  seat_->world().poison(group_->members[rank_], reason);
}

void ThreadComm::close() {
  ThreadSeat::Retired retired;
  auto lock = seat_->world().lock();
  if (closed_) return;
  closed_ = true;
  seat_->leave(lock, *group_);
  retired = seat_->take_retired();
  group_->closed[rank_] = true;
  seat_->world().changed();
}

}  // namespace sparsespan
