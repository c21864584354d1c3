#include "pipeline/shard_order.h"

#include <algorithm>

#include "core/check.h"

namespace sparsespan::pipeline {

namespace {

constexpr const char* kOp = "LayerShard";

// Layers lie on a circle, and each keeps its window for the k + 1 steps from its load to its use. Cut into
// floor(n / (k + 1)) runs of at least k + 1 layers, the place in the run is a window that nobody else needs meanwhile.
std::vector<std::int64_t> fixed_windows(std::int64_t layers, std::int64_t prefetch) {
  const std::int64_t runs = std::max<std::int64_t>(1, layers / (prefetch + 1));
  std::vector<std::int64_t> window;
  for (std::int64_t run = 0; run < runs; ++run) {
    const std::int64_t length = layers / runs + (run < layers % runs);
    for (std::int64_t i = 0; i < length; ++i) window.push_back(i);
  }
  return window;
}

}  // namespace

ShardOrder::ShardOrder(const ShardShape& shape) : shape_(shape) {
  if (shape.layers < 1) refuse_value(kOp, "series", "has no layers, needs at least one");
  if (shape.start < 0) refuse_value(kOp, "series", "starts at layer ", shape.start, ", needs 0 or more");
  if (shape.ranks < 1) refuse_value(kOp, "comm", "has ", shape.ranks, " ranks, needs at least 1");
  const std::int64_t most = std::max<std::int64_t>(0, shape.layers - 2);
  if (shape.prefetch < 0 || shape.prefetch > most) {
    refuse_value(kOp, "prefetch", "is ", shape.prefetch, ", needs 0 to ", most, ", the maximum for ", shape.layers,
                 shape.layers == 1 ? " layer" : " layers");
  }
  std::int64_t windows = shape.prefetch + 1;
  if (shape.fixed_addresses) {
    fixed_ = fixed_windows(shape.layers, shape.prefetch);
    windows = *std::max_element(fixed_.begin(), fixed_.end()) + 1;
  }
  held_.assign(windows, -1);
}

void ShardOrder::require_member(const char* op, std::int64_t layer) const {
  const std::int64_t end = shape_.start + shape_.layers;
  if (layer < shape_.start || layer >= end) {
    refuse_value(op, "layer", "is ", layer, ", needs ", shape_.start, " to ", end - 1, ", the layers of this stage");
  }
}

std::int64_t ShardOrder::target(std::int64_t layer) const {
  require_member("LayerShard.target", layer);
  return (layer - shape_.start + shape_.prefetch) % shape_.layers + shape_.start;
}

ShardLoad ShardOrder::load(std::int64_t layer) {
  const std::int64_t window = fixed_.empty() ? loads_ % windows() : fixed_[layer - shape_.start];
  ++loads_;
  held_[window] = layer;
  return {layer, window};
}

std::vector<ShardLoad> ShardOrder::seed() {
  next_ = loads_ = 0;
  current_ = -1;
  std::fill(held_.begin(), held_.end(), -1);
  std::vector<ShardLoad> first;
  for (std::int64_t i = 0; i < shape_.prefetch; ++i) first.push_back(load(shape_.start + i));
  return first;
}

ShardLoad ShardOrder::reach(std::int64_t layer) {
  constexpr const char* op = "LayerShard.reach";
  require_member(op, layer);
  if (layer != expected()) {
    refuse_value(op, "layer", "is ", layer, ", expected ", expected(),
                 ": every rank reaches every layer in order; reset() goes back to layer ", shape_.start);
  }
  const ShardLoad next = load(target(layer));
  current_ = layer;
  next_ = (next_ + 1) % shape_.layers;
  return next;
}

std::int64_t ShardOrder::window(std::int64_t layer) const {
  constexpr const char* op = "LayerShard.wait";
  require_member(op, layer);
  if (current_ < 0) refuse_value(op, "layer", "is ", layer, ", but no layer is reached yet: call reach(", layer, ")");
  if (layer != current_) {
    refuse_value(op, "layer", "is ", layer, ", expected ", current_, ", the layer that was reached last");
  }
  return std::find(held_.begin(), held_.end(), layer) - held_.begin();
}

}  // namespace sparsespan::pipeline
