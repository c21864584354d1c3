#pragma once

// One call of one rank, as a transport sees it: bytes to move, and the stamp by which ranks compare what they mean.

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "comm/errors.h"
#include "core/tensor.h"

namespace sparsespan {

enum class CommOp : std::int32_t {
  all_gather,
  all_to_all,
  reduce_scatter,
  all_reduce,
  broadcast,
  send,
  recv,
  barrier,
  split,
};
inline constexpr int kCommOpCount = 9;
std::string_view name_of(CommOp op);
inline bool is_collective(CommOp op) { return op != CommOp::send && op != CommOp::recv; }

enum class Reduce : std::int32_t { none, sum, max };
std::string_view name_of(Reduce reduce);

// What all ranks of a collective must agree on. Plain data: it travels as bytes.
struct Fingerprint {
  CommOp op = CommOp::barrier;
  Reduce reduce = Reduce::none;
  std::int32_t dtype = 0;
  std::int32_t root = -1;     // broadcast
  std::int64_t sequence = 0;  // collectives of this communicator so far
  std::int64_t axes = 0;
  std::array<std::int64_t, Tensor::kMaxRank> shape{};  // of the argument; -1 where ranks may differ
  std::uint64_t plan = 0;                              // hash of the plan that the caller follows, 0 = not given
};

struct Stamp {
  Fingerprint print;
  std::vector<std::int64_t> send_bytes;  // [N] all_to_all: what goes to each rank
  std::vector<std::int64_t> recv_bytes;  // [N] all_gather, all_to_all: what comes from each rank
};

struct Request {
  CommOp op = CommOp::barrier;
  DType dtype = DType::none;
  Reduce reduce = Reduce::none;
  int peer = -1;         // root, destination or source
  std::int64_t tag = 0;  // send, recv
  const std::byte* in = nullptr;
  std::byte* out = nullptr;
  std::int64_t bytes = 0;  // of `in` (of `out` for recv)
  Stamp stamp;
  double timeout = 0;          // seconds
  std::shared_ptr<void> keep;  // stays alive until no rank reads or writes the buffers any more
};

struct ByteRange {
  std::int64_t begin = 0;
  std::int64_t size = 0;
};
// The part of a reduction's operand that `rank` of `ranks` sums up.
ByteRange reduce_piece(const Request& request, int ranks, int rank);
// Where the bytes of `rank` begin in a buffer that holds sizes[0], sizes[1], ... one behind the other.
ByteRange piece_of(const std::vector<std::int64_t>& sizes, int rank);

// Compares one stamp per rank; nullptr when all mean the same. The error names the field, the ranks and the values.
std::unique_ptr<rank_mismatch> find_mismatch(const std::vector<const Stamp*>& stamps);

// The same for a message: the sender's stamp against the receiver's.
std::unique_ptr<rank_mismatch> find_mismatch(const Stamp& send, int from, const Stamp& recv, int to);

// "all_gather (collective 3)", "recv (from rank 1, tag 0)": how messages name an operation.
std::string op_text(const Request& request);

// 64-bit FNV-1a of a plan's fingerprint text; 0 for an empty one.
std::uint64_t plan_hash(std::string_view text);

}  // namespace sparsespan
