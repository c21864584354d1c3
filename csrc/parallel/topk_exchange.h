#pragma once

// The best k of all ranks' keys from each rank's own best k: exact, because a key of the global best k has fewer than k
// better ones on its own rank. One total order everywhere: score descending, then logical position ascending.

#include <cstdint>
#include <string_view>

#include "comm/communicator.h"
#include "core/tensor.h"
#include "indexer/candidates.h"
#include "parallel/comm_array.h"
#include "parallel/dcp_layout.h"

namespace sparsespan {

enum class TopkRoute : std::uint8_t {
  all,    // "sharded": everybody gets everybody's (score, id) and merges all rows
  owner,  // "sharded_routed": rows go to the rank that merges them, which then tells the ids
};
TopkRoute parse_topk_route(std::string_view op, std::string_view text);

// One rank's picks on their way. An entry is 64 bits, score key | ~position, so that a greater number is the better one
// and none are equal; 0 is no entry. A NaN travels as a number above all scores and so reaches whoever merges its row.
class TopkPicks {
 public:
  // Rows [T, k]; with TopkRoute::owner rounded up to a multiple of the ranks.
  TopkPicks(std::string_view op, TopkRoute route, int ranks, std::int64_t rows, std::int64_t k);
  // `columns` [T, k] local rows of `rank` and their keys; nan_columns [T] or null.
  void fill(const DcpLayout& layout, std::int64_t rank, const TensorView<std::int32_t, 2>& columns,
            const std::uint32_t* keys, const std::int64_t* nan_columns, int threads);
  // out [T, k] int32: logical positions, ascending, then -1, the same on every rank. Refuses a NaN on every rank alike,
  // with `out` filled with -1.
  void exchange(Communicator& comm, const TensorView<std::int32_t, 2>& out, const CommOptions& options,
                int threads) const;

 private:
  std::string_view op_;
  TopkRoute route_;
  std::int64_t ranks_;
  std::int64_t rows_;
  std::int64_t k_;
  CommArray picks_;  // [rows, k] int64
};

struct GlobalTopkParams {
  Tensor scores;        // [T, S] float32: column l scores local row l of this rank
  Tensor context_lens;  // [T] logical keys that the row sees, or not given: all columns of every rank
  std::int64_t k = 0;
  Tensor out;  // [T, k] int32 logical
  TopkRoute route = TopkRoute::all;
  indexer::NanRule nan = indexer::NanRule::raise;
  Validate validate = Validate::full;
  int threads = 0;
  CommOptions comm;
};

void global_topk(Communicator& comm, const DcpLayout& layout, const GlobalTopkParams& params);

}  // namespace sparsespan
