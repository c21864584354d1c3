#pragma once

// Layer-weight sharding: which rank keeps a layer, and which window takes the layer that is fetched next. Only
// numbers; layer_shard.h moves the bytes.

#include <cstdint>
#include <vector>

namespace sparsespan::pipeline {

struct ShardShape {
  std::int64_t start = 0;   // first layer of the stage, counted over the whole model
  std::int64_t layers = 0;  // n, consecutive
  std::int64_t ranks = 1;
  std::int64_t prefetch = 0;     // k, 0 .. max(0, n - 2)
  bool fixed_addresses = false;  // a layer finds its window at the same place in every pass
};

// A layer and the window that it goes into.
struct ShardLoad {
  std::int64_t layer = 0;
  std::int64_t window = 0;
};

// What one rank does, which is what every rank does: layers are reached in a circle, start, start + 1, ..., and
// reaching one starts the load of the layer k steps ahead.
class ShardOrder {
 public:
  explicit ShardOrder(const ShardShape& shape);

  const ShardShape& shape() const { return shape_; }
  std::int64_t windows() const { return static_cast<std::int64_t>(held_.size()); }
  std::int64_t owner(std::int64_t layer) const { return layer % shape_.ranks; }
  // (layer - start + k) % n + start
  std::int64_t target(std::int64_t layer) const;
  // The layer that has to be reached next, and the one reached last (-1: none yet).
  std::int64_t expected() const { return shape_.start + next_; }
  std::int64_t current() const { return current_; }
  // The first k layers, which no reach has asked for. Forgets what was reached before.
  std::vector<ShardLoad> seed();
  // Refuses any layer but expected().
  ShardLoad reach(std::int64_t layer);
  // The window of the layer that was reached last; refuses any other.
  std::int64_t window(std::int64_t layer) const;

 private:
  void require_member(const char* op, std::int64_t layer) const;
  ShardLoad load(std::int64_t layer);

  ShardShape shape_;
  std::vector<std::int64_t> fixed_;  // [n] window of each layer, empty when they rotate
  std::vector<std::int64_t> held_;   // [windows] layer, -1 = none
  std::int64_t next_ = 0;
  std::int64_t current_ = -1;
  std::int64_t loads_ = 0;
};

struct PrefetchParams {
  std::vector<double> layer_seconds;  // [n] compute of each layer
  double weight_bytes = 0.0;          // of one layer, all series
  std::int64_t prefetch = 0;
  double bandwidth = 0.0;  // bytes per second that a broadcast delivers; 0 is infinite
  double latency = 0.0;    // to launch one
  std::int64_t lanes = 1;  // broadcasts that can be under way at once without slowing one another
};

struct PrefetchTimes {
  double broadcast = 0.0;      // one of them
  double makespan = 0.0;       // of a pass in the steady state
  std::vector<double> stall;   // [n] how long each layer waits for its weight, same pass
  std::vector<double> issued;  // [n] start of the broadcast of each layer, counted from the start of the pass
  std::vector<double> ready;   // [n] its end
  std::vector<double> start;   // [n] start of each layer's compute
};

// The layer loop on paper: a broadcast starts when its reach has been called and a lane is free.
PrefetchTimes simulate_prefetch(const PrefetchParams& params);

}  // namespace sparsespan::pipeline
