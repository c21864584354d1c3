#include "parallel/transfer_run.h"

#include <deque>
#include <exception>
#include <memory>
#include <utility>

#include "parallel/comm_array.h"
#include "parallel/transfer_steps.h"

namespace sparsespan {

namespace {

constexpr std::string_view kOp = "run_transfer";
constexpr std::size_t kWindow = 8;  // messages of one rank under way at once

// What each rank has to say: [N, 3] int64.
std::vector<BadPage> exchange(Communicator& comm, const BadPage& mine, const CommOptions& options) {
  const CommArray in(kOp, DType::int64, {1, 3});
  const CommArray out(kOp, DType::int64, {comm.size(), 3});
  in.data<std::int64_t>()[0] = mine.row;
  in.data<std::int64_t>()[1] = mine.layer;
  in.data<std::int64_t>()[2] = mine.page;
  comm.iall_gather(in.tensor(), out.tensor(), touching(options, in, out))->wait();
  std::vector<BadPage> all;
  for (int r = 0; r < comm.size(); ++r) {
    const std::int64_t* said = out.data<std::int64_t>() + std::ptrdiff_t{3} * r;
    all.push_back({said[0], said[1], said[2]});
  }
  return all;
}

// Before anything moves: a rank that refuses says so instead of leaving the others to their timeouts.
std::unique_ptr<TransferSteps> prepare(Communicator& comm, const RunTransferParams& p, const CommOptions& options) {
  std::unique_ptr<TransferSteps> steps;
  std::exception_ptr refusal;
  try {
    steps = std::make_unique<TransferSteps>(p, comm.rank(), comm.size());
  } catch (const std::exception&) {
    refusal = std::current_exception();
  }
  const auto all = exchange(comm, {refusal ? 0 : -1, 0, 0}, options);
  if (refusal) std::rethrow_exception(refusal);
  for (int r = 0; r < comm.size(); ++r) {
    if (all[r].row < 0) continue;
    comm_error error(detail::join(kOp, ": rank ", r, " refused what it was given; nothing has moved"));
    error.op = kOp;
    error.ranks = {r};
    throw error;
  }
  return steps;
}

using Message = std::shared_ptr<CommArray>;

// Every rank goes through its lines in the order of the table. The earliest line that is not done is then under way on
// both of its ranks, so something always moves.
class Mover {
 public:
  Mover(Communicator& comm, const TransferSteps& steps, const CommOptions& options)
      : comm_(comm), steps_(steps), options_(options) {}

  std::vector<Message> move(TransferReport& report) {
    std::vector<Message> inbox;
    for (const TransferStep& step : steps_.steps()) {
      const Message message = std::make_shared<CommArray>(CommArray(kOp, DType::uint8, {step.bytes()}));
      if (step.gives) steps_.pack(step, message->data<std::byte>());
      CommOptions options = touching(options_, *message);
      options.plan += static_cast<std::uint64_t>(step.row);  // both ends mean the same line
      if (!step.takes) {
        put(comm_.isend(message->tensor(), step.dst, 0, options));
        report.sent += step.payload();
        continue;
      }
      inbox.push_back(message);
      report.pages += step.layers * step.pages();
      if (step.gives) {
        report.local += step.payload();
        continue;
      }
      put(comm_.irecv(message->tensor(), step.src, 0, options));
      report.received += step.payload();
      report.checksums += step.checksums();
    }
    while (!works_.empty()) wait_first();
    return inbox;
  }

 private:
  void put(std::shared_ptr<Work> work) {
    works_.push_back(std::move(work));
    if (works_.size() > kWindow) wait_first();
  }
  void wait_first() {
    works_.front()->wait();
    works_.pop_front();
  }

  Communicator& comm_;
  const TransferSteps& steps_;
  const CommOptions& options_;
  std::deque<std::shared_ptr<Work>> works_;
};

[[noreturn]] void tell(const RunTransferParams& p, const BadPage& bad) {
  const Transfer& t = p.table[static_cast<std::size_t>(bad.row)];
  const int src = p.prefill_ranks[static_cast<std::size_t>(t.src)];
  const int dst = p.decode_ranks[static_cast<std::size_t>(t.dst)];
  checksum_mismatch error(detail::join(kOp, ": page ", bad.page, " of request ", t.request, ", layer ",
                                       t.layer_begin + bad.layer, t.part == 0 ? ", kv" : ", index",
                                       ", arrived unlike it was sent: from rank ", src, " (prefill rank ", t.src,
                                       ") to rank ", dst, " (decode rank ", t.dst, "); nothing has been stored"));
  error.op = kOp;
  error.field = "checksum";
  error.ranks = {src, dst};
  throw error;
}

}  // namespace

TransferReport run_transfer(Communicator& comm, const RunTransferParams& p, const CommOptions& caller) {
  CommOptions options = caller;
  options.plan = p.plan;
  const auto steps = prepare(comm, p, options);
  TransferReport report;
  const auto inbox = Mover(comm, *steps, options).move(report);
  std::size_t next = 0;
  BadPage bad;
  for (const TransferStep& step : steps->steps()) {
    if (!step.takes || bad.row >= 0) continue;
    bad = steps->verify(step, inbox[next++]->data<std::byte>());
  }
  for (const BadPage& said : exchange(comm, bad, options)) {
    if (said.row >= 0) tell(p, said);
  }
  next = 0;
  for (const TransferStep& step : steps->steps()) {
    if (step.takes) steps->store(step, inbox[next++]->data<std::byte>());
  }
  return report;
}

}  // namespace sparsespan
