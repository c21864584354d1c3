#pragma once

// A Communicator over a Transport. Reductions are an exchange of pieces and a sum in order of rank on this side, so
// their bits do not depend on the library's algorithm. In checked mode each operation is preceded by an exchange of
// fingerprints; those bytes are counted apart.

#include <deque>
#include <memory>
#include <string>

#include "comm/communicator.h"
#include "comm/transport.h"

namespace sparsespan {

class TransportPending;

class TransportComm final : public Communicator {
 public:
  TransportComm(std::shared_ptr<Transport> transport, bool checked);
  ~TransportComm() override;

  int rank() const override { return transport_->rank(); }
  int size() const override { return transport_->size(); }
  std::string kind() const override { return transport_->kind(); }
  void poison(const std::string& reason) override;
  void close() override;
  // From here on ranks no longer compare what they mean: their messages say it themselves, and a send needs no answer
  // before its data leave. All ranks call it, with nothing under way.
  void trust() { checked_ = false; }

 protected:
  std::shared_ptr<Pending> start(Request request) override;
  std::shared_ptr<Communicator> form(const Party& party) override;

 private:
  friend class TransportPending;
  // Transfers of collectives start in the order of the operations, the same on every rank: an operation's first one
  // starts only after the last one of the collective before it. Messages keep this order among those of one direction,
  // peer and tag; they hold up nothing else, or two ranks that send before they receive would wait for each other.
  bool must_wait(std::size_t place) const;
  void progress();
  // Now and then: has Ctrl-C been pressed, has a peer given the group up?
  void look_up(const Request& request);
  void wait(TransportPending& pending, CommClock::time_point deadline);
  [[noreturn]] void fail_late(const TransportPending& pending, double waited);
  // The library may still read and write the buffers of what was under way: they are never freed.
  void abandon(const std::string& reason);
  void give_up(const std::string& reason);
  void check_alive(const Request& request) const;

  std::shared_ptr<Transport> transport_;
  bool checked_;
  bool closed_ = false;
  bool poisoned_ = false;
  std::string reason_;
  std::vector<int> culprit_;  // the rank that gave up, when it is known
  CommClock::time_point looked_up_{};
  std::deque<std::shared_ptr<TransportPending>> pending_;
};

}  // namespace sparsespan
