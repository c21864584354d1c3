#pragma once

// Which ranks talk to which: the group lists of an engine, in the engine's own order, as plain numbers.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace sparsespan {

enum class GridFlavor : std::uint8_t { native, sglang, vllm, vllm_ascend };
enum class DcpAxis : std::uint8_t { tp, pcp };
enum class CpStrategy : std::uint8_t { none, zigzag, interleave, contiguous };

struct GridParams {
  GridFlavor flavor = GridFlavor::native;
  std::int64_t tp = 0;  // 0: attention TP = dcp. Attention TP natively and in vLLM; the whole TP group in SGLang
  std::int64_t cp = 1;
  std::int64_t dcp = 1;
  std::int64_t pp = 1;
  std::int64_t dp = 1;
  std::int64_t ep = 1;
  std::int64_t moe_dp = 1;                 // sglang only
  std::int64_t attn_cp = 1;                // vllm only: context parallelism inside TP, beside neither cp nor dcp
  DcpAxis dcp_axis = DcpAxis::tp;          // vllm only: pcp = the DCP group spans PCP first, then TP
  CpStrategy strategy = CpStrategy::none;  // sglang only
  std::int64_t heads = 0;                  // query heads, 0 = not said
  std::int64_t kv_heads = 1;               // 1 = MLA or MQA
  bool sparse = true;                      // vllm_ascend: the SFA backend (V3.2) rather than dense MLA
};

// Contiguous in `ranks`: group g is ranks[g * size .. (g + 1) * size - 1].
struct GridGroups {
  std::string name;
  std::int64_t size = 1;
  std::vector<std::int32_t> ranks;  // each rank of the world once
  std::vector<std::int32_t> place;  // place[rank]: where it stands in `ranks`
};

class RankGrid {
 public:
  // ValueError in words, with the nearest valid numbers, when the flavor's engine would refuse the sizes.
  explicit RankGrid(const GridParams& params);

  const GridParams& params() const { return p_; }
  std::int64_t world_size() const { return world_; }
  std::int64_t attn_tp() const { return attn_tp_; }
  const std::vector<GridGroups>& groups() const { return groups_; }  // in the order an engine creates them
  const GridGroups& group(std::string_view name) const;              // ValueError with the names there are
  std::string text() const;
  std::string fingerprint() const;

 private:
  GridParams p_;
  std::int64_t world_ = 1;
  std::int64_t attn_tp_ = 1;
  std::vector<GridGroups> groups_;
};

// Fills in tp and refuses what the flavor refuses. Split from RankGrid because rules are many and groups few.
GridParams checked_grid(GridParams params);

std::string_view name_of(GridFlavor flavor);
GridFlavor grid_flavor(const std::string& name);
DcpAxis dcp_axis(const std::string& name);
CpStrategy cp_strategy(const std::string& name);  // "" = none

}  // namespace sparsespan
