#pragma once

// Where the tokens of a request lie when N ranks share its KV cache (decode context parallelism).
//
// One object owns interleave S, ranks N and page size B; every span that scales with N is derived from it, so that
// no two places can disagree. Positions go round the ranks in runs of S. A virtual page of B * N positions has one
// page id, the same on all ranks, and B rows of it on each rank.

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>

#include "core/tensor.h"
#include "parallel/block_cyclic.h"

namespace sparsespan {

class DcpLayout {
 public:
  // Refuses S < 1, N < 1, B < 1, B % S != 0 and B * N beyond 2^31 - 1.
  DcpLayout(std::int64_t interleave, std::int64_t world_size, std::int64_t page_size);

  std::int64_t interleave() const { return map_.block; }
  std::int64_t world_size() const { return map_.ranks; }
  std::int64_t page_size() const { return page_size_; }
  std::int64_t virtual_page_size() const { return page_size_ * map_.ranks; }

  // Position (or virtual location) p >= 0. A virtual page begins at a multiple of N * S, so the same maps hold for
  // positions and for locations that an allocator of virtual pages hands out.
  std::int64_t owner(std::int64_t p) const { return map_.owner(p); }
  std::int64_t local(std::int64_t p) const { return map_.local(p); }
  std::int64_t logical(std::int64_t rank, std::int64_t l) const { return map_.logical(rank, l); }
  std::int64_t local_len(std::int64_t length, std::int64_t rank) const { return map_.below(length, rank); }

  std::string text() const;  // "dcp_layout(interleave=1, world_size=4, page_size=64)"
  std::string fingerprint() const;
  // IndexError unless 0 <= rank < N.
  void require_rank(std::string_view op, std::int64_t rank) const;

 private:
  BlockCyclic map_;
  std::int64_t page_size_;
};

enum class DcpMap : std::uint8_t { owner, local, logical, local_len, visible_len };

struct DcpMapParams {
  static constexpr std::int64_t kAllRanks = -1;
  DcpMap map = DcpMap::owner;
  Tensor in;   // [n, m] positions, local rows or lengths; -1 = none stays -1 (its visible length is 0)
  Tensor out;  // dtype of in; [n, m], or [n * m, N] for the lengths of all ranks
  std::int64_t rank = 0;
  int threads = 0;
};

// One value per element. Only -1 means "none"; any other negative value is refused, lengths take no negative value.
void dcp_map(const DcpLayout& layout, const DcpMapParams& params);

}  // namespace sparsespan
