#pragma once

// One rank's share of a transfer plan: which tokens it packs, which it takes, and the checksums between.

#include <array>
#include <vector>

#include "core/scratch.h"
#include "parallel/transfer_run.h"

namespace sparsespan {

// One line of the plan, as this rank takes part in it. The message: tokens, layer by layer in the order of their
// positions, as the cache stores them; then 8 bytes of checksum for each (layer, destination page).
struct TransferStep {
  std::int64_t row = 0;  // of the table
  int src = 0, dst = 0;  // ranks of the communicator
  bool takes = false;    // this rank is dst
  bool gives = false;    // this rank is src
  std::int64_t layers = 0, tokens = 0, width = 0;
  std::vector<std::int64_t> src_slots, dst_slots;  // [tokens], of the roles that this rank has
  std::vector<std::int64_t> page_start;            // [pages + 1] first token of each destination page
  std::vector<std::int64_t> page_place;            // [pages] in the request's page list there

  std::int64_t pages() const { return static_cast<std::int64_t>(page_place.size()); }
  std::int64_t payload() const { return layers * tokens * width; }
  std::int64_t checksums() const { return layers * pages() * 8; }
  std::int64_t bytes() const { return payload() + checksums(); }
};

// A page that differs: -1 when none does.
struct BadPage {
  std::int64_t row = -1;
  std::int64_t layer = 0;  // from the line's first
  std::int64_t page = 0;   // place in the request's page list
};

class TransferSteps {
 public:
  // Refuses whatever does not fit the plan: ranks, layouts, missing layers, pages outside a cache, slots taken twice.
  TransferSteps(const RunTransferParams& params, int rank, int ranks);

  const std::vector<TransferStep>& steps() const { return steps_; }
  void pack(const TransferStep& step, std::byte* message) const;
  BadPage verify(const TransferStep& step, const std::byte* message) const;
  void store(const TransferStep& step, const std::byte* message) const;

 private:
  struct Book {  // one side's caches of this rank after their checks, by part and layer
    std::array<std::vector<PagedCache>, 2> caches;
    std::array<std::vector<bool>, 2> held;
  };
  const Transfer& line(const TransferStep& step) const { return p_.table[static_cast<std::size_t>(step.row)]; }
  PositionSet set_of(const Transfer& t) const;
  Book open(std::string_view name, const TransferCaches& caches, std::int64_t page_size, bool writes) const;
  std::vector<std::int64_t> slots(const Transfer& t, bool source) const;
  void check_rank_lists(int ranks) const;
  void check_layouts() const;
  void add(std::int64_t row, int rank);
  void lay_out_pages(TransferStep& step) const;
  void refuse_twice_taken() const;
  std::uint64_t checksum(const TransferStep& step, const std::byte* message, std::int64_t layer,
                         std::int64_t page) const;

  const RunTransferParams& p_;
  Book source_, dest_;
  std::vector<TransferStep> steps_;
};

}  // namespace sparsespan
