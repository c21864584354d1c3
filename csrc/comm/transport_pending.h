#pragma once

// One operation as a sequence of transfers: fingerprints (checked mode), data, and for all_reduce the pieces' way back.

#include <memory>
#include <vector>

#include "comm/transport_comm.h"

namespace sparsespan {

class TransportPending final : public Pending {
 public:
  TransportPending(TransportComm* owner, Request r, bool checked);
  bool test() override;
  void wait(CommClock::time_point deadline) override;

  // Goes on until a transfer is not done yet. Throws how it failed.
  void advance();
  bool finished() const { return stage_ == Stage::done; }
  // Nobody has been let through: who is not here is late.
  bool meets() const { return stage_ == Stage::check && is_collective(request.op); }
  bool last_started() const { return finished() || (begun_ && stage_ == last_stage()); }

  Request request;

 private:
  enum class Stage : std::uint8_t { check, data, back, done };
  Stage last_stage() const { return request.op == CommOp::all_reduce ? Stage::back : Stage::data; }
  std::unique_ptr<Ticket> begin();
  void finish();
  std::unique_ptr<Ticket> begin_check();
  std::unique_ptr<Ticket> begin_data();
  std::unique_ptr<Ticket> begin_pieces();
  std::unique_ptr<Ticket> begin_back();
  void finish_check();
  void finish_data();
  std::int64_t others(const std::vector<std::int64_t>& sizes) const;
  std::vector<std::int64_t> pieces() const;

  TransportComm* comm_;
  Stage stage_;
  bool begun_ = false;
  std::unique_ptr<Ticket> ticket_;
  std::vector<std::byte> mine_;     // checked mode: this rank's stamp
  std::vector<std::byte> theirs_;   // ... and everybody's
  std::vector<std::byte> scratch_;  // the pieces of a reduction, what a root may not hand out itself
};

}  // namespace sparsespan
