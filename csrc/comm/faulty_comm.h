#pragma once

// A Communicator that fails on purpose, for tests of what happens then.

#include <memory>
#include <string>
#include <string_view>

#include "comm/communicator.h"

namespace sparsespan {

enum class Fault : std::uint8_t {
  raise,     // this rank throws comm_error and does not take part
  skip,      // this rank does not take part but goes on as if it had
  delay,     // this rank takes part late
  mismatch,  // this rank says another plan than the others
  die,       // this process is killed
  corrupt,   // one bit of what this rank gives is flipped on the way
};
Fault parse_fault(std::string_view op, std::string_view argument, std::string_view name);

class FaultyComm final : public Communicator {
 public:
  // `at`: the operation, counted from 0 over all primitives of this communicator.
  FaultyComm(std::shared_ptr<Communicator> inner, Fault fault, std::int64_t at, double seconds);

  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  std::string kind() const override { return inner_->kind(); }
  void poison(const std::string& reason) override { inner_->poison(reason); }
  void close() override { inner_->close(); }
  std::shared_ptr<Work> issue(Request request) override;

 protected:
  std::shared_ptr<Pending> start(Request request) override;
  std::shared_ptr<Communicator> form(const Party& party) override;

 private:
  std::shared_ptr<Communicator> inner_;
  Fault fault_;
  std::int64_t at_;
  double seconds_;
  std::int64_t issued_ = 0;
};

}  // namespace sparsespan
