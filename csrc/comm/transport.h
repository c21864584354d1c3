#pragma once

// What another library (MPI, torch.distributed, a user's own) must be able to do for TransportComm: move bytes. Every
// method starts a transfer and gives a ticket; nullptr says that it is already done. The ranks call the collective ones
// in the same order.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace sparsespan {

class Ticket {
 public:
  virtual ~Ticket() = default;
  virtual bool test() = 0;  // true when done; throws when the transfer failed
};

class Transport {
 public:
  using Sizes = std::vector<std::int64_t>;  // [N] bytes

  virtual ~Transport() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual std::string kind() const = 0;
  // in: sizes[rank] bytes; out: the ranks' bytes one behind the other.
  virtual std::unique_ptr<Ticket> all_gather(const std::byte* in, std::byte* out, const Sizes& sizes) = 0;
  virtual std::unique_ptr<Ticket> all_to_all(const std::byte* in, std::byte* out, const Sizes& to,
                                             const Sizes& from) = 0;
  virtual std::unique_ptr<Ticket> broadcast(std::byte* data, std::int64_t bytes, int root) = 0;
  virtual std::unique_ptr<Ticket> send(const std::byte* in, std::int64_t bytes, int to, std::int64_t tag) = 0;
  virtual std::unique_ptr<Ticket> recv(std::byte* out, std::int64_t bytes, int from, std::int64_t tag) = 0;
  // Collective. color < 0 joins no part and gives nullptr. `ranks` are the part's, in order; the parts of all ranks
  // follow from (color, key) as in MPI_Comm_split.
  virtual std::shared_ptr<Transport> split(std::int64_t color, std::int64_t key, const std::vector<int>& ranks) = 0;
  virtual void poison(const std::string& reason) = 0;
  // The rank that gave the group up, where the library lets ranks tell each other. Asked now and then while this rank
  // waits in a collective (-1: a message); does not wait itself.
  struct Alarm {
    int rank = -1;  // of this group, -1: of another part of the whole
    std::string reason;
  };
  virtual std::optional<Alarm> alarm(std::int64_t /*sequence*/) { return std::nullopt; }
  // The ranks that are not known to wait in this collective too; asked once, after a timeout. Empty: cannot tell.
  virtual std::vector<int> late(std::int64_t /*sequence*/) { return {}; }
  virtual void close() = 0;
};

}  // namespace sparsespan
