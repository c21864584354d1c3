#include "comm/poll.h"

#include <atomic>

namespace sparsespan {

namespace {

std::atomic<PollHook> installed{nullptr};

}  // namespace

void set_poll_hook(PollHook hook) { installed.store(hook); }

void poll_hook() {
  if (const PollHook hook = installed.load(); hook != nullptr) hook();
}

}  // namespace sparsespan
