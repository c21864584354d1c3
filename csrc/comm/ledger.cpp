#include "comm/ledger.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "core/check.h"

namespace sparsespan {

namespace {

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      out += ' ';
    } else {
      out += c;
    }
  }
  return out + "\"";
}

}  // namespace

Ledger::Entry* Ledger::find(std::int64_t number) {
  if (ring_.empty() || number < ring_.front().number) return nullptr;  // the ring has moved on
  const auto place = static_cast<std::size_t>(number - ring_.front().number);
  return place < ring_.size() ? &ring_[place] : nullptr;
}

CommSpan* Ledger::find_span(std::int64_t number) {
  const std::int64_t place = number - first_span_;
  return place >= 0 && place < static_cast<std::int64_t>(spans_.size()) ? &spans_[place] : nullptr;
}

std::int64_t Ledger::open(const Request& request, Clock::time_point begin) {
  const double now = seconds_of(begin);
  const std::lock_guard lock(mutex_);
  Entry entry;
  entry.number = issued_++;
  entry.print = request.stamp.print;
  entry.bytes = request.bytes;
  entry.peer = request.peer;
  entry.tag = request.tag;
  entry.started = now - birth_;
  ring_.push_back(std::move(entry));
  if (ring_.size() > kRing) ring_.pop_front();
  spans_.push_back(CommSpan{request.op, request.peer, false, 0, now, -1});
  if (spans_.size() > kSpans) {
    spans_.pop_front();
    ++first_span_;
  }
  ++counters_[static_cast<int>(request.op)].calls;
  return issued_ - 1;
}

void Ledger::end(std::int64_t number, std::string state, std::int64_t received, bool failed, double now) {
  if (Entry* entry = find(number); entry != nullptr) {
    entry->state = std::move(state);
    entry->ended = now - birth_;
  }
  if (CommSpan* span = find_span(number); span != nullptr) {
    span->end = now;
    span->bytes = received;
    span->failed = failed;
  }
}

void Ledger::finish(std::int64_t number, CommOp op, std::int64_t received, Clock::time_point now, double seconds) {
  const std::lock_guard lock(mutex_);
  counters_[static_cast<int>(op)].bytes += received;
  counters_[static_cast<int>(op)].seconds += seconds;
  end(number, "done", received, false, seconds_of(now));
}

void Ledger::fail(std::int64_t number, const std::string& why) {
  const std::lock_guard lock(mutex_);
  end(number, "failed: " + why, 0, true, seconds_of(Clock::now()));
}

void Ledger::spend(CommOp op, double seconds) {
  const std::lock_guard lock(mutex_);
  counters_[static_cast<int>(op)].seconds += seconds;
}

void Ledger::count_checks(std::int64_t received) {
  const std::lock_guard lock(mutex_);
  ++checks_.calls;
  checks_.bytes += received;
}

std::int64_t Ledger::issued() const {
  const std::lock_guard lock(mutex_);
  return issued_;
}

Counter Ledger::counter(CommOp op) const {
  const std::lock_guard lock(mutex_);
  return counters_[static_cast<int>(op)];
}

Counter Ledger::checks() const {
  const std::lock_guard lock(mutex_);
  return checks_;
}

void Ledger::reset() {
  const std::lock_guard lock(mutex_);
  counters_ = {};
  checks_ = {};
  spans_.clear();
  first_span_ = issued_;
}

std::vector<CommSpan> Ledger::timeline() const {
  const std::lock_guard lock(mutex_);
  std::vector<CommSpan> ended;
  std::copy_if(spans_.begin(), spans_.end(), std::back_inserter(ended), [](const CommSpan& s) { return s.end >= 0; });
  return ended;
}

std::string Ledger::entry_json(const Entry& e) {
  std::string shape;
  for (std::int64_t i = 0; i < e.print.axes; ++i) {
    shape += (i == 0 ? "" : ", ") + (e.print.shape[i] < 0 ? "null" : std::to_string(e.print.shape[i]));
  }
  std::string text = detail::join(
      "{\"number\": ", e.number, ", \"op\": \"", name_of(e.print.op), "\", \"sequence\": ", e.print.sequence,
      ", \"dtype\": \"", name_of(static_cast<DType>(e.print.dtype)), "\", \"shape\": [", shape,
      "], \"bytes\": ", e.bytes, ", \"peer\": ", e.peer, ", \"tag\": ", e.tag, ", \"plan\": ", e.print.plan);
  text += detail::join(", \"started\": ", e.started, ", \"ended\": ");
  text += e.ended < 0 ? "null" : detail::join(e.ended);
  return text + ", \"state\": " + quoted(e.state) + "}";
}

std::string Ledger::json(int rank, int size) const {
  const std::lock_guard lock(mutex_);
  std::string text =
      detail::join("{\"rank\": ", rank, ", \"size\": ", size, ", \"issued\": ", issued_, ", \"operations\": [");
  for (std::size_t i = 0; i < ring_.size(); ++i) text += (i == 0 ? "" : ", ") + entry_json(ring_[i]);
  return text + "]}";
}

}  // namespace sparsespan
