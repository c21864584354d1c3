#include "comm/thread_pending.h"

#include <algorithm>
#include <cstring>

#include "comm/reduce.h"

namespace sparsespan {

namespace {

// Holds the right to read the peers' buffers: taken under the lock, which is given up meanwhile.
class Reading {
 public:
  Reading(ThreadWorld::Lock& lock, int& readers) : lock_(lock), readers_(readers) {
    ++readers_;
    lock_.unlock();
  }
  ~Reading() {
    lock_.lock();
    --readers_;
  }
  Reading(const Reading&) = delete;
  Reading& operator=(const Reading&) = delete;

 private:
  ThreadWorld::Lock& lock_;
  int& readers_;
};

constexpr std::int64_t kAtOnce = 1 << 16;  // bytes over all pairs of ranks: a few microseconds

bool reduces(const Request& r) { return r.op == CommOp::all_reduce || r.op == CommOp::reduce_scatter; }

std::int64_t take(std::byte* to, const std::byte* from, std::int64_t bytes) {
  if (bytes > 0 && to != from) std::memcpy(to, from, static_cast<std::size_t>(bytes));
  return bytes;
}

}  // namespace

bool ThreadPending::test() { return finished || seat_->test(*this); }

void ThreadPending::wait(CommClock::time_point deadline) {
  if (!finished) seat_->wait(*this, deadline);
}

void ThreadPending::post() {
  if (is_collective(request.op)) {
    post_collective();
  } else {
    post_parcel();
  }
}

void ThreadPending::post_collective() {
  auto& meeting = group->meetings[request.stamp.print.sequence];
  if (!meeting) {
    meeting = std::make_shared<Meeting>();
    meeting->posts.resize(ranks());
    meeting->served.resize(ranks());
  }
  meeting_ = meeting;
  meeting->posts[rank_] = this;
  if (++meeting->arrived < ranks()) return;
  std::vector<const Stamp*> stamps;
  std::int64_t bytes = 0;
  for (const ThreadPending* post : meeting->posts) {
    if (post == nullptr) return;  // a rank has failed and taken its request back: the world is poisoned
    stamps.push_back(&post->request.stamp);
    bytes = std::max(bytes, post->request.bytes);
  }
  meeting->verdict = find_mismatch(stamps);
  if (!meeting->verdict && bytes <= kAtOnce / ranks() / ranks()) serve_all();
  seat_->world().changed();
}

// Little data: who comes last copies for all, under the lock. The others find it done and need not meet again.
void ThreadPending::serve_all() {
  for (ThreadPending* post : meeting_->posts) {
    if (reduces(request)) post->reduce();
  }
  for (ThreadPending* post : meeting_->posts) {
    post->copy();
    post->stage_ = Stage::linger;
  }
  meeting_->served.assign(ranks(), true);
  meeting_->reduced = meeting_->copied = ranks();
}

void ThreadPending::post_parcel() {
  const bool sends = request.op == CommOp::send;
  const auto key =
      sends ? std::make_tuple(rank_, request.peer, request.tag) : std::make_tuple(request.peer, rank_, request.tag);
  auto& queue = group->parcels[key];
  auto open =
      std::find_if(queue.begin(), queue.end(), [&](const auto& p) { return (sends ? p->send : p->recv) == nullptr; });
  if (open == queue.end()) open = queue.insert(queue.end(), std::make_shared<Parcel>());
  parcel_ = *open;
  (sends ? parcel_->send : parcel_->recv) = &request;
  if (parcel_->send == nullptr || parcel_->recv == nullptr) return;
  seat_->world().changed();
  queue.erase(open);
  if (queue.empty()) group->parcels.erase(key);
  parcel_->verdict = find_mismatch(parcel_->send->stamp, std::get<0>(key), parcel_->recv->stamp, std::get<1>(key));
}

void ThreadPending::advance(ThreadWorld::Lock& lock) {
  if (parcel_) return advance_parcel(lock);
  const ThreadWorld& world = seat_->world();
  if (stage_ == Stage::gather && !world.poisoned && meeting_->arrived == ranks() && !meeting_->verdict) {
    stage_ = Stage::copy;
    if (reduces(request)) {
      {
        const Reading reading(lock, meeting_->reading);
        reduce();
      }
      ++meeting_->reduced;
      seat_->world().changed();
    }
  }
  if (stage_ == Stage::copy && !world.poisoned && (!reduces(request) || meeting_->reduced == ranks())) {
    {
      const Reading reading(lock, meeting_->reading);
      copy();
    }
    ++meeting_->copied;
    meeting_->served[rank_] = true;
    stage_ = Stage::linger;
    seat_->world().changed();
  }
  // Nobody reads this rank's buffers any more.
  if (stage_ == Stage::linger && meeting_->copied == ranks()) finished = true;
}

void ThreadPending::advance_parcel(ThreadWorld::Lock& lock) {
  const bool both = parcel_->send != nullptr && parcel_->recv != nullptr;
  if (request.op == CommOp::recv && both && !parcel_->done && !parcel_->verdict && !seat_->world().poisoned) {
    parcel_->reading = true;
    const std::byte* from = parcel_->send->in;
    lock.unlock();
    received += take(request.out, from, request.bytes);
    lock.lock();
    parcel_->reading = false;
    parcel_->done = true;
    seat_->world().changed();
  }
  finished = parcel_->done;
}

void ThreadPending::copy() {
  if (request.op == CommOp::all_reduce) return copy_reduced();
  const auto& posts = meeting_->posts;
  if (request.op == CommOp::broadcast) {
    if (rank_ != request.peer) received += take(request.out, posts[request.peer]->request.in, request.bytes);
    return;
  }
  if (request.op == CommOp::barrier || request.op == CommOp::reduce_scatter) return;
  // Starting with the next rank spreads the readers over the sources.
  for (int step = 1; step <= ranks(); ++step) {
    const int from = (rank_ + step) % ranks();
    const ByteRange to = piece_of(request.stamp.recv_bytes, from);
    const std::int64_t begin =
        request.op == CommOp::all_to_all ? piece_of(posts[from]->request.stamp.send_bytes, rank_).begin : 0;
    const std::int64_t taken = take(request.out + to.begin, posts[from]->request.in + begin, to.size);
    if (from != rank_) received += taken;
  }
}

void ThreadPending::reduce() {
  const ByteRange piece = reduce_piece(request, ranks(), rank_);
  std::vector<const std::byte*> parts;
  for (const ThreadPending* post : meeting_->posts) parts.push_back(post->request.in + piece.begin);
  std::byte* out = request.op == CommOp::all_reduce ? request.out + piece.begin : request.out;
  if (piece.size > 0) reduce_in_order(request.dtype, request.reduce, parts, out, piece.size);
  received += piece.size * (ranks() - 1);
}

void ThreadPending::copy_reduced() {
  for (int step = 1; step < ranks(); ++step) {
    const int from = (rank_ + step) % ranks();
    const ByteRange piece = reduce_piece(request, ranks(), from);
    received += take(request.out + piece.begin, meeting_->posts[from]->request.out + piece.begin, piece.size);
  }
}

void ThreadPending::leave_meeting() {
  if (meeting_ && ++meeting_->left == ranks()) group->meetings.erase(request.stamp.print.sequence);
}

void ThreadPending::take_back() {
  if (meeting_) meeting_->posts[rank_] = nullptr;
  if (parcel_) (request.op == CommOp::send ? parcel_->send : parcel_->recv) = nullptr;
}

bool ThreadPending::is_read() const { return meeting_ ? meeting_->reading > 0 : parcel_ && parcel_->reading; }

const rank_mismatch* ThreadPending::verdict() const {
  return meeting_ ? meeting_->verdict.get() : parcel_ ? parcel_->verdict.get() : nullptr;
}

std::vector<int> ThreadPending::missing() const {
  if (parcel_) {
    const bool both = parcel_->send != nullptr && parcel_->recv != nullptr;
    return both ? std::vector<int>{} : std::vector<int>{request.peer};
  }
  std::vector<int> late;
  for (int r = 0; meeting_ && r < ranks(); ++r) {
    if (meeting_->posts[r] == nullptr) late.push_back(r);
  }
  return late;
}

std::vector<int> ThreadPending::unserved() const {
  if (parcel_) return {request.peer};
  std::vector<int> late;
  for (int r = 0; meeting_ && r < ranks(); ++r) {
    if (!meeting_->served[r]) late.push_back(r);
  }
  return late;
}

std::vector<int> ThreadPending::gone() const {
  auto ranks = missing();
  std::erase_if(ranks, [&](int r) { return !group->closed[r]; });
  return ranks;
}

}  // namespace sparsespan
