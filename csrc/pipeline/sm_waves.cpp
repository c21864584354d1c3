#include "pipeline/sm_waves.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <queue>

#include "core/check.h"

namespace sparsespan::pipeline {

namespace {

double end_of(const SmWavesParams& p, std::int64_t grid, std::int64_t reserved) {
  const std::int64_t blocks = std::min(grid, static_cast<std::int64_t>(p.tiles.size()));
  std::priority_queue<double, std::vector<double>, std::greater<>> free;
  for (std::int64_t sm = 0; sm < p.sms; ++sm) free.push(sm < p.sms - reserved ? 0.0 : p.reserved_until);
  double last = 0.0;
  for (std::int64_t block = 0; block < blocks; ++block) {
    double end = free.top();
    free.pop();
    for (std::size_t t = block; t < p.tiles.size(); t += static_cast<std::size_t>(grid)) end += p.tiles[t];
    last = std::max(last, end);
    free.push(end);
  }
  return last;
}

}  // namespace

SmWaves sm_waves(const SmWavesParams& p) {
  if (p.sms < 1) refuse_value("sm_waves", "sms", "is ", p.sms, ", needs at least 1");
  if (p.reserved < 0 || p.reserved >= p.sms) {
    refuse_value("sm_waves", "reserved", "is ", p.reserved, ", needs 0 to ", p.sms - 1, ": one SM must be left");
  }
  if (p.grid != -1 && p.grid < 1) refuse_value("sm_waves", "grid", "is ", p.grid, ", needs at least 1");
  if (!(p.reserved_until >= 0.0))
    refuse_value("sm_waves", "reserved_until", "is ", p.reserved_until, ", needs 0 or more");
  for (std::size_t i = 0; i < p.tiles.size(); ++i) {
    if (!(std::isfinite(p.tiles[i]) && p.tiles[i] >= 0.0)) {
      refuse_value("sm_waves", "tiles", "holds ", p.tiles[i], " at ", i, ", needs finite costs of 0 or more");
    }
  }
  const std::int64_t grid = p.grid == -1 ? p.sms : p.grid;
  const auto tiles = static_cast<std::int64_t>(p.tiles.size());
  SmWaves result;
  result.waves = (tiles + grid - 1) / grid;
  result.alone = end_of(p, p.sms, 0);
  result.time = end_of(p, grid, p.reserved);
  for (std::int64_t g = p.sms; g >= 1; --g) {
    const double end = end_of(p, g, p.reserved);
    if (g == p.sms || end < result.best_time) result.best_time = end, result.best_grid = g;
  }
  return result;
}

}  // namespace sparsespan::pipeline
