#pragma once

// Who sends which token bytes to whom when prefill and decode run on different machines. Pure data: nothing moves here.

#include <cstdint>
#include <string_view>
#include <vector>

#include "parallel/transfer_positions.h"

namespace sparsespan {

// Where the prefill side keeps the cache of a pipeline stage's layers.
enum class KvPlacement : std::uint8_t {
  full,         // every cp rank holds every token of every layer of the stage
  layer_split,  // every cp rank holds every token of a contiguous range of the stage's layers
  interleave,   // token p lies with rank (p / interleave) % (cp * dcp) of the group
};

// How several holders of the same bytes share the sending.
enum class Spread : std::uint8_t {
  balanced,  // all holders, wrap-around: loads differ by at most one unit of pages per request
  pages,     // every cp rank sends its positional slice of the pages to every destination
  request,   // cp rank (request % cp) sends all of it
  first,     // cp rank 0 sends all of it
};

KvPlacement parse_kv_placement(std::string_view argument, std::string_view text);
Spread parse_spread(std::string_view text);

// One side: rank = (pp_rank * cp + cp_rank) * tp + tp_rank, dcp_rank = tp_rank % dcp.
struct KvSide {
  std::int64_t tp = 1, cp = 1, pp = 1, dcp = 1;
  KvPlacement kv = KvPlacement::full;
  std::int64_t interleave = 1;       // tokens, divides page_size
  std::int64_t page_size = 1;        // tokens of one rank's page
  bool index_sharded = true;         // false: the index cache is replicated where the latent cache is sharded
  std::vector<std::int64_t> stages;  // layers of each pipeline stage
};

struct TransferParams {
  KvSide prefill;
  KvSide decode;  // kv and cp are not read: decode shards over dcp only
  std::int64_t num_layers = 0;
  std::int64_t kv_bytes = 0;               // per token and layer, >= 0
  std::int64_t index_bytes = 0;            // per token and layer, 0 = no index cache
  std::vector<std::int64_t> index_layers;  // ascending; the layers that own an index cache
  std::vector<std::int64_t> lengths;       // [B] tokens of each request
  std::vector<std::int64_t> present;       // [B] leading tokens the decode side already has
  Spread spread = Spread::balanced;
};

enum class Part : std::uint8_t { kv, index };

// The positions in [start, stop) that both sides' classes own, of layers [layer_begin, layer_end).
// Pages are places in the request's own page list of that rank, not page ids.
struct Transfer {
  std::int64_t request, part, layer_begin, layer_end, src, dst, src_class, dst_class, start, stop;
  std::int64_t src_page_begin, src_page_end, dst_page_begin, dst_page_end;
  std::int64_t tokens, bytes;
};
static_assert(sizeof(Transfer) == 16 * sizeof(std::int64_t));

// Sorted by request, destination, part, layer, start, source. Every (destination, part, layer, position) that the
// decode layout needs and `present` does not cover appears exactly once.
std::vector<Transfer> transfer_plan(const TransferParams& params);

// The layout of one part on one side: BlockCyclic{1, 1} when every holder has every token.
BlockCyclic prefill_layout(const KvSide& side, Part part);
BlockCyclic decode_layout(const KvSide& side, Part part);

}  // namespace sparsespan
