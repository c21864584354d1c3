#include "comm/communicator.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "comm/checks.h"

namespace sparsespan {

namespace {

std::vector<std::int64_t> in_bytes(const Rows& rows, std::int64_t width) {
  std::vector<std::int64_t> bytes(rows);
  for (auto& b : bytes) b *= width;  // the sum over ranks is an array's size: it fits
  return bytes;
}

Rows repeat(std::int64_t rows, int size) { return Rows(size, rows); }

}  // namespace

void Communicator::set_timeout(double seconds) {
  if (!(seconds > 0) || !std::isfinite(seconds)) {
    refuse_value("Communicator", "timeout", "is ", seconds, ", needs seconds above 0");
  }
  timeout_ = seconds;
}

void Communicator::stand_for(const Communicator& inner) {
  ledger_ = inner.ledger_;
  splits_ = inner.splits_;
  timeout_ = inner.timeout_;
}

Request Communicator::make(CommOp op, const Tensor& argument, const CommOptions& options) const {
  if (std::isnan(options.timeout) || options.timeout == 0) {
    refuse_value(name_of(op), "timeout", "is ", options.timeout, ", needs seconds above 0");
  }
  Request r;
  r.op = op;
  r.dtype = argument.dtype;
  r.in = static_cast<const std::byte*>(argument.data);
  r.timeout = options.timeout < 0 ? timeout_ : options.timeout;
  r.keep = options.keep;
  r.stamp.print.op = op;
  r.stamp.print.dtype = static_cast<std::int32_t>(argument.dtype);
  r.stamp.print.axes = argument.rank;
  r.stamp.print.shape = argument.shape;
  for (int i = argument.rank; i < Tensor::kMaxRank; ++i) r.stamp.print.shape[i] = 0;
  r.stamp.print.plan = options.plan;
  r.stamp.send_bytes.assign(size(), 0);
  r.stamp.recv_bytes.assign(size(), 0);
  if (argument) r.bytes = total_bytes(name_of(op), argument);
  return r;
}

std::shared_ptr<Work> Communicator::issue(Request request) {
  if (is_collective(request.op)) request.stamp.print.sequence = collectives_++;
  const auto begin = CommClock::now();
  const std::int64_t number = ledger_->open(request, begin);
  Request kept;
  kept.op = request.op;
  kept.timeout = request.timeout;
  kept.keep = request.keep;
  std::shared_ptr<Pending> pending;
  try {
    pending = start(std::move(request));
  } catch (...) {
    note_failure(*ledger_, number, rank(), size());
    throw;
  }
  ledger_->spend(kept.op, std::chrono::duration<double>(CommClock::now() - begin).count());
  return std::make_shared<Work>(std::move(pending), ledger_, number, std::move(kept), rank(), size());
}

std::shared_ptr<Work> Communicator::iall_gather(const Tensor& in, const Tensor& out, const CommOptions& options) {
  check_operand("all_gather", "x", in);
  if (in.rank == 0) refuse_value("all_gather", "x", "has no axes, needs at least one to join along");
  check_result("all_gather", in, out, checked_product("all_gather", "x", in.shape[0], size()), false);
  Request r = make(CommOp::all_gather, in, options);
  r.out = static_cast<std::byte*>(out.data);
  r.stamp.recv_bytes = repeat(r.bytes, size());
  return issue(std::move(r));
}

std::shared_ptr<Work> Communicator::iall_gatherv(const Tensor& in, const Tensor& out, const Rows& rows,
                                                 const CommOptions& options) {
  check_operand("all_gather", "x", in);
  if (in.rank == 0) refuse_value("all_gather", "x", "has no axes, needs at least one to join along");
  check_rows("all_gather", "counts", rows, size(), out && out.rank > 0 ? out.shape[0] : 0, "out");
  if (rows[rank()] != in.shape[0]) {
    refuse_value("all_gather", "x", "has ", in.shape[0], " rows, needs counts[", rank(), "] = ", rows[rank()]);
  }
  check_result("all_gather", in, out, out.shape[0], false);
  Request r = make(CommOp::all_gather, in, options);
  r.out = static_cast<std::byte*>(out.data);
  r.stamp.print.shape[0] = -1;
  r.stamp.recv_bytes = in_bytes(rows, row_bytes("all_gather", in));
  return issue(std::move(r));
}

std::shared_ptr<Work> Communicator::iall_to_all(const Tensor& in, const Tensor& out, const CommOptions& options) {
  check_operand("all_to_all", "x", in);
  const Rows rows = equal_rows("all_to_all", in, size());
  check_result("all_to_all", in, out, in.shape[0], false);
  Request r = make(CommOp::all_to_all, in, options);
  r.out = static_cast<std::byte*>(out.data);
  r.stamp.send_bytes = r.stamp.recv_bytes = in_bytes(rows, row_bytes("all_to_all", in));
  return issue(std::move(r));
}

std::shared_ptr<Work> Communicator::iall_to_allv(const Tensor& in, const Tensor& out, const Rows& to, const Rows& from,
                                                 const CommOptions& options) {
  check_operand("all_to_all", "x", in);
  if (in.rank == 0) refuse_value("all_to_all", "x", "has no axes, needs at least one to cut along");
  check_rows("all_to_all", "send_counts", to, size(), in.shape[0], "x");
  check_rows("all_to_all", "recv_counts", from, size(), out && out.rank > 0 ? out.shape[0] : 0, "out");
  check_result("all_to_all", in, out, out.shape[0], false);
  Request r = make(CommOp::all_to_all, in, options);
  r.out = static_cast<std::byte*>(out.data);
  r.stamp.print.shape[0] = -1;
  r.stamp.send_bytes = in_bytes(to, row_bytes("all_to_all", in));
  r.stamp.recv_bytes = in_bytes(from, row_bytes("all_to_all", in));
  return issue(std::move(r));
}

std::shared_ptr<Work> Communicator::ireduce_scatter(const Tensor& in, const Tensor& out, Reduce reduce,
                                                    const CommOptions& options) {
  check_operand("reduce_scatter", "x", in);
  check_reduction("reduce_scatter", in, reduce);
  const Rows rows = equal_rows("reduce_scatter", in, size());
  check_result("reduce_scatter", in, out, rows[0], false);
  Request r = make(CommOp::reduce_scatter, in, options);
  r.out = static_cast<std::byte*>(out.data);
  r.reduce = r.stamp.print.reduce = reduce;
  return issue(std::move(r));
}

std::shared_ptr<Work> Communicator::iall_reduce(const Tensor& in, const Tensor& out, Reduce reduce,
                                                const CommOptions& options) {
  check_operand("all_reduce", "x", in);
  check_reduction("all_reduce", in, reduce);
  check_result("all_reduce", in, out, in.rank > 0 ? in.shape[0] : 1, true);
  Request r = make(CommOp::all_reduce, in, options);
  r.out = static_cast<std::byte*>(out.data);
  r.reduce = r.stamp.print.reduce = reduce;
  return issue(std::move(r));
}

std::shared_ptr<Work> Communicator::ibroadcast(const Tensor& buffer, int root, const CommOptions& options) {
  check_operand("broadcast", "x", buffer);
  check_rank("broadcast", "root", root, size());
  if (rank() != root) require_writable("broadcast", "x", buffer, {});
  Request r = make(CommOp::broadcast, buffer, options);
  // A root may have memory that must not be written to, such as a mapped file.
  r.out = buffer.writable ? static_cast<std::byte*>(buffer.data) : nullptr;
  r.peer = r.stamp.print.root = root;
  return issue(std::move(r));
}

std::shared_ptr<Work> Communicator::isend(const Tensor& in, int to, std::int64_t tag, const CommOptions& options) {
  check_operand("send", "x", in);
  check_rank("send", "to", to, size());
  if (to == rank()) refuse_value("send", "to", "is ", to, ", this rank itself; copy instead");
  Request r = make(CommOp::send, in, options);
  r.peer = to;
  r.tag = tag;
  return issue(std::move(r));
}

std::shared_ptr<Work> Communicator::irecv(const Tensor& out, int from, std::int64_t tag, const CommOptions& options) {
  check_operand("recv", "out", out);
  check_rank("recv", "source", from, size());
  if (from == rank()) refuse_value("recv", "source", "is ", from, ", this rank itself; copy instead");
  require_writable("recv", "out", out, {});
  Request r = make(CommOp::recv, out, options);
  r.in = nullptr;
  r.out = static_cast<std::byte*>(out.data);
  r.peer = from;
  r.tag = tag;
  return issue(std::move(r));
}

std::shared_ptr<Communicator> Communicator::split(std::int64_t color, std::int64_t key, double timeout) {
  // The number tells this split's parts from those of the last one; ranks behind decorators may count differently.
  std::int64_t mine[3] = {color, key, splits_};
  std::vector<std::int64_t> all(3 * static_cast<std::size_t>(size()));
  Tensor argument;
  argument.data = mine;
  argument.dtype = DType::int64;
  argument.rank = 1;
  argument.shape[0] = 3;
  argument.strides[0] = 1;
  argument.present = true;
  CommOptions options;
  options.timeout = timeout;
  Request r = make(CommOp::split, argument, options);
  r.out = reinterpret_cast<std::byte*>(all.data());
  r.stamp.recv_bytes = repeat(r.bytes, size());
  issue(std::move(r))->wait();
  Party party{splits_, color, key, {}, 0};
  for (int q = 0; q < size(); ++q) {
    party.number = std::max(party.number, all[3 * q + 2]);
    if (color >= 0 && all[3 * q] == color) party.ranks.push_back(q);
  }
  splits_ = party.number + 1;
  std::stable_sort(party.ranks.begin(), party.ranks.end(),
                   [&](int a, int b) { return all[3 * a + 1] < all[3 * b + 1]; });
  party.rank = static_cast<int>(std::find(party.ranks.begin(), party.ranks.end(), rank()) - party.ranks.begin());
  auto part = form(party);
  if (part) part->set_timeout(timeout_);
  return part;
}

std::shared_ptr<Work> Communicator::ibarrier(const CommOptions& options) {
  return issue(make(CommOp::barrier, Tensor{}, options));
}

}  // namespace sparsespan
