#include "comm/transport_pending.h"

#include <cstring>
#include <numeric>
#include <type_traits>

#include "comm/reduce.h"

namespace sparsespan {

namespace {

bool reduces(const Request& r) { return r.op == CommOp::all_reduce || r.op == CommOp::reduce_scatter; }

// Fingerprint | send_bytes [N] | recv_bytes [N]
std::vector<std::byte> pack(const Stamp& stamp) {
  static_assert(std::is_trivially_copyable_v<Fingerprint>);
  const std::size_t counts = stamp.send_bytes.size() * sizeof(std::int64_t);
  std::vector<std::byte> bytes(sizeof(Fingerprint) + 2 * counts);
  std::memcpy(bytes.data(), &stamp.print, sizeof(Fingerprint));
  std::memcpy(bytes.data() + sizeof(Fingerprint), stamp.send_bytes.data(), counts);
  std::memcpy(bytes.data() + sizeof(Fingerprint) + counts, stamp.recv_bytes.data(), counts);
  return bytes;
}

Stamp unpack(const std::byte* bytes, int ranks) {
  Stamp stamp;
  const std::size_t counts = ranks * sizeof(std::int64_t);
  std::memcpy(&stamp.print, bytes, sizeof(Fingerprint));
  stamp.send_bytes.resize(ranks);
  stamp.recv_bytes.resize(ranks);
  std::memcpy(stamp.send_bytes.data(), bytes + sizeof(Fingerprint), counts);
  std::memcpy(stamp.recv_bytes.data(), bytes + sizeof(Fingerprint) + counts, counts);
  return stamp;
}

}  // namespace

TransportPending::TransportPending(TransportComm* owner, Request r, bool checked)
    : request(std::move(r)), comm_(owner), stage_(checked ? Stage::check : Stage::data) {}

bool TransportPending::test() {
  if (!finished()) {
    comm_->check_alive(request);
    comm_->progress();
    if (!finished()) comm_->look_up(request);
  }
  return finished();
}

void TransportPending::wait(CommClock::time_point deadline) {
  if (!finished()) comm_->wait(*this, deadline);
}

std::int64_t TransportPending::others(const std::vector<std::int64_t>& sizes) const {
  return std::accumulate(sizes.begin(), sizes.end(), std::int64_t{0}) - sizes[comm_->rank()];
}

std::vector<std::int64_t> TransportPending::pieces() const {
  std::vector<std::int64_t> sizes;
  sizes.reserve(comm_->size());
  for (int r = 0; r < comm_->size(); ++r) sizes.push_back(reduce_piece(request, comm_->size(), r).size);
  return sizes;
}

void TransportPending::advance() {
  while (stage_ != Stage::done) {
    if (!begun_) {
      ticket_ = begin();
      begun_ = true;
    }
    if (ticket_ && !ticket_->test()) return;
    ticket_.reset();
    begun_ = false;
    finish();
  }
}

std::unique_ptr<Ticket> TransportPending::begin() {
  if (stage_ == Stage::check) return begin_check();
  return stage_ == Stage::data ? begin_data() : begin_back();
}

std::unique_ptr<Ticket> TransportPending::begin_check() {
  Transport& t = *comm_->transport_;
  mine_ = pack(request.stamp);
  const auto bytes = static_cast<std::int64_t>(mine_.size());
  if (request.op == CommOp::send) return t.send(mine_.data(), bytes, request.peer, request.tag);
  theirs_.resize(mine_.size() * (request.op == CommOp::recv ? 1 : comm_->size()));
  if (request.op == CommOp::recv) return t.recv(theirs_.data(), bytes, request.peer, request.tag);
  return t.all_gather(mine_.data(), theirs_.data(), Transport::Sizes(comm_->size(), bytes));
}

void TransportPending::finish_check() {
  comm_->ledger()->count_checks(static_cast<std::int64_t>(theirs_.size()) -
                                (is_collective(request.op) ? static_cast<std::int64_t>(mine_.size()) : 0));
  std::unique_ptr<rank_mismatch> error;
  if (request.op == CommOp::recv) {
    error = find_mismatch(unpack(theirs_.data(), comm_->size()), request.peer, request.stamp, comm_->rank());
  } else if (is_collective(request.op)) {
    std::vector<Stamp> stamps;
    stamps.reserve(comm_->size());
    for (int r = 0; r < comm_->size(); ++r) stamps.push_back(unpack(theirs_.data() + r * mine_.size(), comm_->size()));
    std::vector<const Stamp*> all;
    all.reserve(stamps.size());
    for (const Stamp& stamp : stamps) all.push_back(&stamp);
    error = find_mismatch(all);
  }
  if (error) throw rank_mismatch(*error);
}

std::unique_ptr<Ticket> TransportPending::begin_data() {
  Transport& t = *comm_->transport_;
  const Stamp& s = request.stamp;
  const bool root = request.peer == comm_->rank();
  switch (request.op) {
    case CommOp::all_gather:
    case CommOp::split: return t.all_gather(request.in, request.out, s.recv_bytes);
    case CommOp::all_to_all: return t.all_to_all(request.in, request.out, s.send_bytes, s.recv_bytes);
    case CommOp::reduce_scatter:
    case CommOp::all_reduce: return begin_pieces();
    case CommOp::broadcast:
      if (!root) received += request.bytes;
      if (request.out == nullptr) {
        // MPI may write the root's bytes back into its buffer: MPICH does where long ones go round in pieces.
        scratch_.assign(request.in, request.in + request.bytes);
        return t.broadcast(scratch_.data(), request.bytes, request.peer);
      }
      return t.broadcast(request.out, request.bytes, request.peer);
    case CommOp::send: return t.send(request.in, request.bytes, request.peer, request.tag);
    case CommOp::recv: received += request.bytes; return t.recv(request.out, request.bytes, request.peer, request.tag);
    case CommOp::barrier:
      mine_.assign(1, std::byte{0});
      theirs_.assign(comm_->size(), std::byte{0});
      return t.all_gather(mine_.data(), theirs_.data(), Transport::Sizes(comm_->size(), 1));
  }
  return nullptr;
}

std::unique_ptr<Ticket> TransportPending::begin_pieces() {
  const auto sizes = pieces();
  const std::int64_t own = sizes[comm_->rank()];
  scratch_.resize(own * comm_->size());
  return comm_->transport_->all_to_all(request.in, scratch_.data(), sizes, Transport::Sizes(comm_->size(), own));
}

std::unique_ptr<Ticket> TransportPending::begin_back() {
  const auto sizes = pieces();
  received += others(sizes);
  return comm_->transport_->all_gather(mine_.data(), request.out, sizes);
}

void TransportPending::finish_data() {
  if (request.op == CommOp::all_gather || request.op == CommOp::all_to_all || request.op == CommOp::split) {
    received += others(request.stamp.recv_bytes);
  }
  if (!reduces(request)) return;
  const std::int64_t own = reduce_piece(request, comm_->size(), comm_->rank()).size;
  received += own * (comm_->size() - 1);
  std::vector<const std::byte*> parts;
  parts.reserve(comm_->size());
  for (int r = 0; r < comm_->size(); ++r) parts.push_back(scratch_.data() + r * own);
  std::byte* out = request.out;
  if (request.op == CommOp::all_reduce) {
    mine_.resize(own);
    out = mine_.data();
  }
  if (own > 0) reduce_in_order(request.dtype, request.reduce, parts, out, own);
}

void TransportPending::finish() {
  if (stage_ == Stage::check) {
    finish_check();
    stage_ = Stage::data;
    return;
  }
  if (stage_ == Stage::data) finish_data();
  stage_ = stage_ == last_stage() ? Stage::done : Stage::back;
}

}  // namespace sparsespan
