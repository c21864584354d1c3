#pragma once

// Bytes that a scheme moves, in closed form, primitive by primitive. Definitions: docs of sparsespan.cp.volume.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace sparsespan {

struct AttentionDims {
  std::int64_t layers = 0;
  std::int64_t index_layers = 0;  // layers that own an indexer; 0 = dense attention
  std::int64_t hidden = 0;
  std::int64_t heads = 0;
  std::int64_t q_lora = 0;
  std::int64_t kv_lora = 0;
  std::int64_t rope = 0;
  std::int64_t nope = 0;
  std::int64_t v_head = 0;
  std::int64_t topk = 0;
};

enum class Primitive : std::uint8_t { all_gather, all_gatherv, reduce_scatter, all_reduce, all_to_all, broadcast };
std::string_view name_of(Primitive primitive);

struct VolumeParams {
  std::string scheme;
  AttentionDims dims;
  std::vector<std::int64_t> lengths;   // [B] new tokens of each request in this step
  std::vector<std::int64_t> contexts;  // [B] tokens in the cache, for the schemes that gather context
  std::int64_t ranks = 1;              // cp, dcp or (scheme "tp") tp
  std::int64_t tp = 1;                 // attention tp inside a cp rank; for "dcp" the tp group that dcp divides
  std::int64_t kv_bytes = 0;           // one token's latent row in one layer, as gathered
  std::int64_t index_bytes = 0;        // one token's index-K row in one layer, as gathered
  std::int64_t activation_bytes = 2;   // an element of hidden states, queries and attention outputs
  std::int64_t weight_bytes = 2;       // an element of gathered or broadcast weights
  std::int64_t payload_bytes = 4;      // an element of the partial outputs that dcp merges
  std::int64_t page_size = 1;
  std::int64_t interleave = 1;
  std::string combine = "ag_rs";  // "ag_rs", "a2a", "ar"
  std::string index_k = "none";   // "none", "replicated", "sharded", "sharded_routed", "union", "gathered"
  std::string o_proj = "none";    // "none", "gather_weight", "a2a_rs"
  std::string restore = "last";   // rows gathered for the LM head: "none", "last", "all"
  bool replicate_q = false;
  bool replicated_state = false;  // dsa_cp: hidden states are whole on every rank between layers
  // Of a plan, where there is one; else they follow from scheme, lengths and ranks.
  std::int64_t rows = -1;               // rows of each rank that travel
  std::vector<std::int64_t> last_rows;  // [N] requests whose last row the rank has
};

// One collective of a step. `chunk` is the ring's unit: what each rank contributes (all_gather), keeps
// (reduce_scatter, all_reduce), sends to each peer (all_to_all), or the whole buffer (broadcast, and all_gatherv: an
// all_gather of unequal parts).
struct VolumeRow {
  std::string what;
  Primitive primitive;
  std::int64_t group;  // ranks that take part
  std::int64_t times;  // executions in one step
  std::int64_t chunk;  // bytes
  std::string formula;
  std::int64_t spared = 0;  // all_gatherv: bytes that the busiest rank has itself

  // Per execution: the busiest rank's bytes in and out, and the sum over the group.
  std::int64_t received() const;
  std::int64_t sent() const;
  std::int64_t total() const;
};

std::vector<VolumeRow> volume(const VolumeParams& params);

// Rows of the busiest rank when the batch is split by one of the seven layouts, pad rows that travel included.
std::int64_t busiest_rows(std::string_view scheme, const std::vector<std::int64_t>& lengths, std::int64_t ranks);
// [N] requests whose last row each rank has.
std::vector<std::int64_t> last_rows(std::string_view scheme, const std::vector<std::int64_t>& lengths,
                                    std::int64_t ranks);
bool is_split(std::string_view scheme);

}  // namespace sparsespan
