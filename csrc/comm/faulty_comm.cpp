#include "comm/faulty_comm.h"

#include <algorithm>
#include <csignal>
#include <thread>
#include <utility>

#include "comm/poll.h"
#include "core/check.h"

namespace sparsespan {

namespace {

class Done final : public Pending {
 public:
  bool test() override { return true; }
  void wait(CommClock::time_point /*deadline*/) override {}
};

void sleep_with_polls(double seconds) {
  const auto until = deadline_in(seconds);
  while (CommClock::now() < until) {
    std::this_thread::sleep_for(std::min<CommClock::duration>(until - CommClock::now(), std::chrono::milliseconds(20)));
    poll_hook();
  }
}

// The last bit of the middle byte, in a copy that lives as long as the request.
void flip_a_bit(Request& request) {
  if (request.in == nullptr || request.bytes == 0) return;
  struct Copy {
    std::vector<std::byte> data;
    std::shared_ptr<void> user;
  };
  auto copy = std::make_shared<Copy>();
  copy->data.assign(request.in, request.in + request.bytes);
  copy->data[copy->data.size() / 2] ^= std::byte{1};
  copy->user = std::move(request.keep);
  request.in = copy->data.data();
  request.keep = std::move(copy);
}

}  // namespace

Fault parse_fault(std::string_view op, std::string_view argument, std::string_view name) {
  if (name == "raise") return Fault::raise;
  if (name == "skip") return Fault::skip;
  if (name == "delay") return Fault::delay;
  if (name == "mismatch") return Fault::mismatch;
  if (name == "die") return Fault::die;
  if (name == "corrupt") return Fault::corrupt;
  refuse_value(op, argument, "is \"", name,
               "\", needs \"raise\", \"skip\", \"delay\", \"mismatch\", \"die\" or \"corrupt\"");
}

FaultyComm::FaultyComm(std::shared_ptr<Communicator> inner, Fault fault, std::int64_t at, double seconds)
    : inner_(std::move(inner)), fault_(fault), at_(at), seconds_(seconds) {
  if (!inner_) refuse_type("FaultyComm", "comm", "is not given");
  if (at < 0) refuse_value("FaultyComm", "at", "is ", at, ", needs the number of an operation, from 0");
  if (!(seconds >= 0)) refuse_value("FaultyComm", "seconds", "is ", seconds, ", needs at least 0");
  stand_for(*inner_);
}

std::shared_ptr<Work> FaultyComm::issue(Request request) {
  if (issued_++ != at_) return inner_->issue(std::move(request));
  switch (fault_) {
    case Fault::raise: {
      comm_error error(std::string(name_of(request.op)) + ": injected failure at operation " + std::to_string(at_));
      error.op = name_of(request.op);
      error.ranks = {rank()};
      throw error;
    }
    case Fault::skip: {
      const std::int64_t number = ledger()->open(request, CommClock::now());
      return std::make_shared<Work>(std::make_shared<Done>(), ledger(), number, std::move(request), rank(), size());
    }
    case Fault::delay: sleep_with_polls(seconds_); break;
    case Fault::mismatch: request.stamp.print.plan ^= 0x5A5A5A5A5A5A5A5AULL; break;
    case Fault::die: std::raise(SIGKILL); break;
    case Fault::corrupt: flip_a_bit(request); break;
  }
  return inner_->issue(std::move(request));
}

std::shared_ptr<Pending> FaultyComm::start(Request /*request*/) {
  throw comm_error("FaultyComm: operations start in the communicator that it wraps");
}

// issue() has exchanged the colors already; the wrapped communicator only forms the part.
std::shared_ptr<Communicator> FaultyComm::form(const Party& party) { return form_of(*inner_, party); }

}  // namespace sparsespan
