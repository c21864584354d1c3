#pragma once

// A transfer plan carried out over a Communicator. Both sides' ranks are ranks of it.

#include <cstdint>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "parallel/transfer_plan.h"
#include "quant/layout.h"

namespace sparsespan {

// What one rank has on one side. Layers that it does not hold have no cache (not present).
struct TransferCaches {
  bool present = false;
  std::vector<Tensor> kv;           // [layers] paged caches of `layout`
  std::vector<Tensor> index;        // [layers] paged caches of `index_layout`
  std::vector<Tensor> pages;        // [B] int [pages of the request on this rank] page ids of the latent caches
  std::vector<Tensor> index_pages;  // [B] of the index caches; empty: as `pages`
};

struct RunTransferParams {
  std::vector<Transfer> table;
  BlockCyclic src_layout[2];  // by Part
  BlockCyclic dst_layout[2];
  std::int64_t src_page_size = 1;
  std::int64_t dst_page_size = 1;
  KvLayout layout = KvLayout::fp8_656;
  KvLayout index_layout = KvLayout::index_132;
  std::int64_t bytes[2] = {0, 0};  // per token and layer as the plan counts them
  TransferCaches source;
  TransferCaches dest;
  std::vector<int> prefill_ranks;  // rank of `comm` of each prefill rank
  std::vector<int> decode_ranks;
  std::uint64_t plan = 0;  // hash of the plan
  int threads = 0;
};

struct TransferReport {
  std::int64_t sent = 0;       // bytes of cache rows to other ranks
  std::int64_t received = 0;   // from other ranks
  std::int64_t local = 0;      // between the two roles of this rank
  std::int64_t checksums = 0;  // bytes of checksums received from other ranks
  std::int64_t pages = 0;      // destination pages (per layer) whose checksum this rank has compared
};

// Collective. Every rank checks what it was given before anything moves, and learns whether all others could; every
// received page is compared with its sender's checksum, and nothing is stored anywhere before all ranks say that all of
// theirs agree. Otherwise every rank throws (checksum_mismatch, or why it could not begin) and no cache has changed.
TransferReport run_transfer(Communicator& comm, const RunTransferParams& params, const CommOptions& options);

}  // namespace sparsespan
