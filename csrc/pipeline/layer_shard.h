#pragma once

// The weights of a stage's layers, each kept by one rank and broadcast to the others shortly before it is used.

#include <memory>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "pipeline/shard_order.h"

namespace sparsespan::pipeline {

// One linear of every layer. All ranks name the same series in the same order.
struct ShardSeries {
  std::string name;
  std::vector<Tensor> owned;    // [n], present where this rank is the owner
  std::vector<Tensor> windows;  // [windows], the same dtype and shape
  std::shared_ptr<void> keep;
};

class LayerShard {
 public:
  // Collective: fills the windows of the first k layers.
  LayerShard(std::shared_ptr<Communicator> comm, const ShardShape& shape, std::vector<ShardSeries> series);

  const ShardOrder& order() const { return order_; }
  bool owns(std::int64_t layer) const { return order_.owner(layer) == comm_->rank(); }
  // Starts the broadcasts of the layer k steps ahead, series by series.
  void reach(std::int64_t layer);
  // Returns the window of the layer reached last once the weight of series `number` (-1: of all) is there. The owner
  // does not wait for its readers, unless nothing is fetched ahead and they all stand here.
  std::int64_t wait(std::int64_t layer, std::int64_t number);
  // Moves on what can move, on transports where nothing moves between calls.
  void poll();
  // Nothing is under way afterwards.
  void wait_all();
  // wait_all, then the state right after construction. Collective.
  void reset();
  // Broadcasts that have been started and not been waited for.
  std::int64_t under_way() const;

 private:
  void start(const ShardLoad& load);
  void seed();
  void settle(std::shared_ptr<Work>& work);

  std::shared_ptr<Communicator> comm_;
  ShardOrder order_;
  std::vector<ShardSeries> series_;
  std::vector<std::vector<std::shared_ptr<Work>>> works_;  // [series][window], null = nothing under way
};

}  // namespace sparsespan::pipeline
