#include <algorithm>
#include <cmath>
#include <string_view>
#include <utility>

#include "core/check.h"
#include "pipeline/shard_order.h"

namespace sparsespan::pipeline {

namespace {

void check(const PrefetchParams& p) {
  constexpr std::string_view op = "simulate_prefetch";
  const auto n = static_cast<std::int64_t>(p.layer_seconds.size());
  if (n < 1) refuse_value(op, "layer_seconds", "is empty, needs the time of at least one layer");
  for (std::int64_t i = 0; i < n; ++i) {
    if (!(std::isfinite(p.layer_seconds[i]) && p.layer_seconds[i] >= 0)) {
      refuse_value(op, "layer_seconds", "holds ", p.layer_seconds[i], " at ", i, ", needs finite times of 0 or more");
    }
  }
  const auto finite = [&](std::string_view name, double value) {
    if (!(std::isfinite(value) && value >= 0)) refuse_value(op, name, "is ", value, ", needs a finite 0 or more");
  };
  finite("weight_bytes", p.weight_bytes);
  finite("bandwidth", p.bandwidth);
  finite("latency", p.latency);
  if (p.lanes < 1) refuse_value(op, "lanes", "is ", p.lanes, ", needs at least 1");
  const std::int64_t most = std::max<std::int64_t>(0, n - 2);
  if (p.prefetch < 0 || p.prefetch > most) {
    refuse_value(op, "prefetch", "is ", p.prefetch, ", needs 0 to ", most, ", the maximum for ", n, " layers");
  }
}

constexpr int kPasses = 100;

bool settled(const std::vector<double>& before, const std::vector<double>& after, double now) {
  return std::equal(before.begin(), before.end(), after.begin(), after.end(),
                    [&](double a, double b) { return std::abs(a - b) <= 1e-12 * now; });
}

}  // namespace

PrefetchTimes simulate_prefetch(const PrefetchParams& p) {
  check(p);
  const auto n = static_cast<std::int64_t>(p.layer_seconds.size());
  const std::int64_t k = p.prefetch;
  PrefetchTimes t;
  t.broadcast = p.latency + (p.bandwidth > 0 ? p.weight_bytes / p.bandwidth : 0.0);
  t.stall.assign(n, 0.0);
  t.issued = t.ready = t.start = t.stall;
  std::vector<double> lanes(p.lanes, 0.0);
  std::vector<double> issued(n, 0.0);
  std::vector<double> ready(n, 0.0);  // the first k layers stand in their windows before the first pass
  double now = 0.0;
  double begin = 0.0;
  // A queue of at most k broadcasts crosses from pass to pass; how long it is settles after some passes.
  std::vector<double> before;
  for (int pass = 0; pass < kPasses; ++pass) {
    begin = now;
    for (std::int64_t i = 0; i < n; ++i) {
      const std::int64_t ahead = (i + k) % n;
      double& lane = *std::min_element(lanes.begin(), lanes.end());
      issued[ahead] = std::max(now, lane);
      lane = ready[ahead] = issued[ahead] + t.broadcast;
      t.issued[i] = issued[i] - begin;
      t.ready[i] = ready[i] - begin;
      t.stall[i] = std::max(0.0, ready[i] - now);
      t.start[i] = now + t.stall[i] - begin;
      now += t.stall[i] + p.layer_seconds[i];
    }
    std::vector<double> after;
    after.reserve(lanes.size() + static_cast<std::size_t>(k));
    for (const double lane : lanes) after.push_back(std::max(lane - now, 0.0));
    for (std::int64_t i = 0; i < k; ++i) after.push_back(std::max(ready[i] - now, 0.0));
    if (settled(before, after, now)) break;
    before = std::move(after);
  }
  t.makespan = now - begin;
  return t;
}

}  // namespace sparsespan::pipeline
