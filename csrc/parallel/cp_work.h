#pragma once

// A collective under way and what this rank does with its result: both are done when wait() returns.

#include <functional>
#include <memory>

#include "comm/communicator.h"

namespace sparsespan {

class CpWork {
 public:
  // `finish` runs once, on the thread that waits or tests, after the collective ended well; it moves data that has
  // been checked before and refuses nothing. Everything it touches must be kept alive by it.
  CpWork(std::shared_ptr<Work> work, std::function<void()> finish)
      : work_(std::move(work)), finish_(std::move(finish)) {}

  bool test() {
    if (work_->test()) complete();
    return finish_ == nullptr;
  }
  void wait(double timeout = -1) {
    work_->wait(timeout);
    complete();
  }

 private:
  void complete() {
    if (finish_ == nullptr) return;
    const auto finish = std::move(finish_);
    finish_ = nullptr;
    finish();
  }

  std::shared_ptr<Work> work_;
  std::function<void()> finish_;
};

}  // namespace sparsespan
