#pragma once

// A persistent kernel with a static schedule on a machine of which another kernel holds some SMs.

#include <cstdint>
#include <limits>
#include <vector>

namespace sparsespan::pipeline {

struct SmWavesParams {
  std::vector<double> tiles;  // cost of each tile
  std::int64_t sms = 0;
  std::int64_t reserved = 0;  // SMs that the other kernel holds from the start
  std::int64_t grid = -1;     // blocks that the kernel launches; -1: one for each SM
  double reserved_until = std::numeric_limits<double>::infinity();
};

struct SmWaves {
  std::int64_t waves = 0;      // tiles of the block that has most
  double alone = 0.0;          // time when no SM is held and the grid fills the machine
  double time = 0.0;           // time with the reservation
  std::int64_t best_grid = 0;  // the grid that ends soonest under the reservation, the largest of them
  double best_time = 0.0;
};

// Block s of a grid G runs tiles s, s + G, ...; one block to an SM, blocks start in order as SMs come free.
SmWaves sm_waves(const SmWavesParams& params);

}  // namespace sparsespan::pipeline
