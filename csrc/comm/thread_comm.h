#pragma once

// Ranks that are threads of one process. A rank reads straight out of its peers' buffers: nothing is staged.
//
// A rank that fails (its own error, a mismatch, a timeout) poisons the world, that is all groups split from the same
// ThreadComm, and does not return before the last peer has stopped reading its buffers.

#include <memory>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "comm/thread_seat.h"

namespace sparsespan {

class ThreadComm final : public Communicator {
 public:
  ThreadComm(std::shared_ptr<ThreadGroup> group, std::shared_ptr<ThreadSeat> seat, int rank);
  ~ThreadComm() override;

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(group_->members.size()); }
  std::string kind() const override { return "threads"; }
  void poison(const std::string& reason) override;
  void close() override;

  // The ranks of a new world, one per thread.
  static std::vector<std::shared_ptr<ThreadComm>> make(int ranks);

 protected:
  std::shared_ptr<Pending> start(Request request) override;
  std::shared_ptr<Communicator> form(const Party& party) override;

 private:
  std::shared_ptr<ThreadGroup> group_;
  std::shared_ptr<ThreadSeat> seat_;
  int rank_;
  bool closed_ = false;
};

}  // namespace sparsespan
