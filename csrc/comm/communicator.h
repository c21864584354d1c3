#pragma once

// A group of ranks. Every method is called by all ranks in the same order (send and recv by their two), on the rank's
// entry thread, never inside parallel_for and never with a lock held. An operation ends in one of three ways: done, a
// comm_error, or comm_timeout; after an error the group is given up and every later call says why.
//
// Arrays are C-contiguous. Collectives cut along the first axis; "rows" are entries of that axis. Integer and float
// reductions run in the order of the ranks, so that their bits are the same on every rank and in every run.

#include <memory>
#include <string>
#include <vector>

#include "comm/work.h"

namespace sparsespan {

struct CommOptions {
  double timeout = -1;         // seconds; negative: the communicator's
  std::uint64_t plan = 0;      // plan_hash(...) of the plan that the caller follows; ranks compare it
  std::shared_ptr<void> keep;  // kept alive as long as the operation may touch the buffers
};

using Rows = std::vector<std::int64_t>;  // [N] rows per rank

// One part of a group that was split.
struct Party {
  std::int64_t number = 0;  // which split of this communicator
  std::int64_t color = 0;
  std::int64_t key = 0;
  std::vector<int> ranks;  // of the whole, in order of the part's ranks
  int rank = 0;            // this rank in the part
};

class Communicator {
 public:
  static constexpr double kTimeout = 300;

  Communicator() = default;
  virtual ~Communicator() = default;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  virtual int rank() const = 0;
  virtual int size() const = 0;

  // in [n, ...] -> out [N * n, ...]: the ranks' rows in order of rank. With `rows`, rank r brings rows[r].
  std::shared_ptr<Work> iall_gather(const Tensor& in, const Tensor& out, const CommOptions& options = {});
  std::shared_ptr<Work> iall_gatherv(const Tensor& in, const Tensor& out, const Rows& rows,
                                     const CommOptions& options = {});
  // in [N * n, ...] -> out [N * n, ...]: block q of rank r becomes block r of rank q. The v form names the rows that
  // go to and come from each rank.
  std::shared_ptr<Work> iall_to_all(const Tensor& in, const Tensor& out, const CommOptions& options = {});
  std::shared_ptr<Work> iall_to_allv(const Tensor& in, const Tensor& out, const Rows& to, const Rows& from,
                                     const CommOptions& options = {});
  // in [N * n, ...] -> out [n, ...]: block r of the sum (or maximum) over ranks. float32, float64, bfloat16 (summed
  // in float32, rounded once), int32, int64.
  std::shared_ptr<Work> ireduce_scatter(const Tensor& in, const Tensor& out, Reduce reduce,
                                        const CommOptions& options = {});
  // in and out of one shape; they may be the same array.
  std::shared_ptr<Work> iall_reduce(const Tensor& in, const Tensor& out, Reduce reduce,
                                    const CommOptions& options = {});
  // The root's buffer is copied into everybody's.
  std::shared_ptr<Work> ibroadcast(const Tensor& buffer, int root, const CommOptions& options = {});
  // A send is done when the receiver has the data. Between two ranks, messages of one tag keep their order.
  std::shared_ptr<Work> isend(const Tensor& in, int to, std::int64_t tag = 0, const CommOptions& options = {});
  std::shared_ptr<Work> irecv(const Tensor& out, int from, std::int64_t tag = 0, const CommOptions& options = {});
  std::shared_ptr<Work> ibarrier(const CommOptions& options = {});

  // The ranks of one color form a group, ordered by (key, rank); a negative color joins none (nullptr). Failure in a
  // part gives up the whole where the transport can tell.
  std::shared_ptr<Communicator> split(std::int64_t color, std::int64_t key, double timeout = -1);
  // Gives the group up: ranks that wait, and every later call, end in comm_aborted with this reason.
  virtual void poison(const std::string& reason) = 0;
  // This rank takes no further part. Operations still under way give the group up.
  virtual void close() = 0;
  virtual std::string kind() const = 0;

  void set_timeout(double seconds);
  double timeout() const { return timeout_; }
  const std::shared_ptr<Ledger>& ledger() const { return ledger_; }
  std::string record() const { return ledger_->json(rank(), size()); }

  // Every operation passes here; a decorator overrides it.
  virtual std::shared_ptr<Work> issue(Request request);

 protected:
  // Starts moving what the request says. The request's buffers stay valid until the Pending is done, or, after a
  // failure, until it is destroyed.
  virtual std::shared_ptr<Pending> start(Request request) = 0;
  // Called on every rank, also on those that join no part (they return nullptr).
  virtual std::shared_ptr<Communicator> form(const Party& party) = 0;
  // For a decorator: the same, asked of the communicator that it wraps.
  static std::shared_ptr<Communicator> form_of(Communicator& inner, const Party& party) { return inner.form(party); }
  void stand_for(const Communicator& inner);

 private:
  Request make(CommOp op, const Tensor& argument, const CommOptions& options) const;

  double timeout_ = kTimeout;
  std::int64_t collectives_ = 0;
  std::int64_t splits_ = 0;
  std::shared_ptr<Ledger> ledger_ = std::make_shared<Ledger>();
};

}  // namespace sparsespan
