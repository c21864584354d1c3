#pragma once

// A context-parallel split of one batch, as pure data.
//
// A plan stores one thing per rank: its local rows, in order. Positions, key ranges, lengths, kept requests, slots
// and the restore index are all computed from those rows, so that no table can be filtered unlike its lengths.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/tensor.h"
#include "parallel/plan_buffer.h"

namespace sparsespan {

enum class CpScheme : std::uint8_t {
  zigzag,
  zigzag_padded,
  ceil_chunk,
  interleave,
  contiguous,
  contiguous_flat,
  thd_even,
};
enum class CpFlavor : std::uint8_t { native, sglang, vllm, vllm_ascend };
enum class RowKind : std::uint8_t { prefill, decode, pad };

std::string_view name_of(CpScheme scheme);
std::string_view name_of(CpFlavor flavor);

using Ints = std::vector<std::int64_t>;

// Row numbers of a batch and of a gathered stream fit 31 bits: engines keep them in int32.
inline constexpr std::int64_t kMaxPlanRows = 0x7FFFFFFF;

// What a plan is made from. B requests, T rows, N ranks.
struct CpBatch {
  CpScheme scheme = CpScheme::zigzag;
  CpFlavor flavor = CpFlavor::native;
  std::int64_t world_size = 1;
  std::int64_t pad_to = -1;         // rows of the padded stream; -1 = not padded
  Ints cu;                          // [B + 1] first row of each request
  Ints prefix;                      // [B] cached keys before the request's first row
  std::vector<std::uint8_t> kind;   // [T] RowKind; empty = all prefill
  Ints real;                        // [B] rows of a request that are no pad rows; they come first
  Ints split_len;                   // [B] rows that the scheme cuts: cu difference, plus what an engine pads
  std::vector<std::uint8_t> whole;  // [B] 1 = decode request that stands on every rank
  Ints k_start;                     // [B + 1] first key of each request in the packed K: sums of prefix + rows

  std::int64_t requests() const { return static_cast<std::int64_t>(prefix.size()); }
  std::int64_t rows() const { return cu.back(); }
  std::int64_t length(std::int64_t s) const { return cu[s + 1] - cu[s]; }
  // Schemes whose ranks own a front and a back piece of every request.
  bool has_parts() const {
    return scheme == CpScheme::zigzag || scheme == CpScheme::zigzag_padded || scheme == CpScheme::ceil_chunk ||
           scheme == CpScheme::thd_even;
  }
  // 0 = front (or the only piece), 1 = back.
  int part_of(std::int64_t request, std::int64_t offset) const;
};

// One local row, decoded. `visible` rows are real: the others are padding and reach no cache, top-k set or logit.
struct CpRow {
  std::int64_t id = -1;       // row of the batch, -1 = the batch has no such row
  std::int64_t request = -1;  // -1 = padding that belongs to no request
  std::int64_t offset = 0;    // in the request's rows
  bool visible = false;
};

// Runs of consecutive real rows of one request and part, in local order; bottom-right causal: query j of a segment
// sees kv_len - q_len + j + 1 keys.
struct CpSegments {
  Ints request, part, q_start, q_len, kv_len;
};

// Lengths per request (and part), as attention operators with cumulative query lengths take them.
struct CpSeqLens {
  Ints q;                  // inclusive cumulative query rows, no leading 0
  Ints kv;                 // keys that the last query of the entry sees, 0 where it has none
  std::int64_t parts = 1;  // 2: entries are [2, B], front then back, each cumulated by itself
};

enum class CpCost : std::uint8_t { rows, indexer, attention };

class CpPlan {
 public:
  explicit CpPlan(CpBatch batch);

  const CpBatch& batch() const { return batch_; }
  std::int64_t padded_len() const { return padded_len_; }
  // Stable across processes and machines; equal plans have equal fingerprints.
  std::uint64_t fingerprint() const { return fingerprint_; }
  std::int64_t nbytes() const;  // what the plan keeps
  bool operator==(const CpPlan& other) const;
  Ints restore_index() const;    // [T] row of the gathered [N * padded_len] stream
  Ints counts() const;           // [N] local rows, pad rows included
  Ints real_counts() const;      // [N]
  Ints owner() const;            // [T] rank whose copy counts
  Ints decode_requests() const;  // ascending
  Ints last_row_owner() const;   // [B], -1 = the request has no row
  Ints last_row_index() const;   // [B] in the gathered stream, -1 likewise
  std::vector<double> rank_costs(CpCost cost, std::int64_t topk) const;  // [N]

  // Per local row of `rank`, followed by padding up to `length` (-1: none).
  Ints rank_rows(std::int64_t rank, std::int64_t length) const;
  Ints positions(std::int64_t rank, std::int64_t length) const;
  Ints row_to_request(std::int64_t rank, std::int64_t length, bool include_pads) const;
  Ints context_lens(std::int64_t rank, std::int64_t length) const;
  std::pair<Ints, Ints> ks_ke(std::int64_t rank, std::int64_t length) const;
  Ints kv_write_mask(std::int64_t rank, std::int64_t length) const;
  // global_slots: [T] or [pad_to] integers, slot of each row of the batch.
  Ints slot_mapping(const Tensor& global_slots, std::int64_t rank, std::int64_t length) const;

  CpSegments segments(std::int64_t rank) const;
  CpSeqLens seq_lens(std::int64_t rank) const;
  Ints part_rows(std::int64_t rank, int part) const;  // local rows of one part, real ones only
  Ints request_counts(std::int64_t rank) const;       // [B] real rows
  Ints kept_requests(std::int64_t rank) const;        // requests with a real row here, ascending

 private:
  void check_rank(std::int64_t rank) const;
  std::int64_t local_rows(std::int64_t rank) const { return rank_start_[rank + 1] - rank_start_[rank]; }
  CpRow row(std::int64_t code, std::int64_t& hint) const;
  bool writes(std::int64_t rank, const CpRow& row) const;
  void count_pads();
  std::vector<Ints> layout_starts();
  void place_rows(std::vector<Ints> cursor);
  std::uint64_t mix() const;
  template <class F>
  Ints map_rows(std::int64_t rank, std::int64_t length, F&& f) const;
  template <class F>
  void each_visible(std::int64_t rank, F&& f) const {  // f(local row, CpRow)
    check_rank(rank);
    std::int64_t hint = 0;
    for (std::int64_t i = rank_start_[rank]; i < rank_start_[rank + 1]; ++i) {
      const CpRow found = row(codes_->data()[i], hint);
      if (found.visible) f(i - rank_start_[rank], found);
    }
  }

  // Four bytes per row of the batch and four per local row: a plan of a million rows stays in the caches' reach.
  CpBatch batch_;
  Ints rank_start_;                  // [N + 1]
  Ints pad_start_;                   // [B + 1] running sum of padding inside requests; empty: there is none
  std::optional<PlanBuffer> codes_;  // local rows of all ranks: see row()
  PlanBuffer restore_;               // [T]
  std::int64_t padded_len_ = 0;
  std::uint64_t fingerprint_ = 0;
};

}  // namespace sparsespan
