#pragma once

// How an operation between ranks ends when it does not end well. Python sees CommError, CommTimeout, RankMismatch,
// CommAborted and ChecksumMismatch with the same fields.

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace sparsespan {

struct comm_error : std::runtime_error {
  using std::runtime_error::runtime_error;
  std::string op;              // the primitive, empty when none was under way
  std::int64_t sequence = -1;  // its number on this communicator
  std::vector<int> ranks;      // whom it names: late, differing or failed
  std::string field;           // what differs (RankMismatch)
  std::string record;          // the last operations of this rank, JSON
};

// A peer did not come in time.
struct comm_timeout : comm_error {
  using comm_error::comm_error;
};

// The ranks do not mean the same operation.
struct rank_mismatch : comm_error {
  using comm_error::comm_error;
};

// Another rank failed, or somebody gave the group up.
struct comm_aborted : comm_error {
  using comm_error::comm_error;
};

// What arrived is not what was sent.
struct checksum_mismatch : comm_error {
  using comm_error::comm_error;
};

// "rank 3", "ranks 0, 1 and 3"
std::string ranks_text(const std::vector<int>& ranks);

}  // namespace sparsespan
