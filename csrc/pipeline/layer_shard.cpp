#include "pipeline/layer_shard.h"

#include <utility>

#include "core/check.h"

namespace sparsespan::pipeline {

LayerShard::LayerShard(std::shared_ptr<Communicator> comm, const ShardShape& shape, std::vector<ShardSeries> series)
    : comm_(std::move(comm)), order_(shape), series_(std::move(series)) {
  for (const ShardSeries& s : series_) {
    const bool whole = static_cast<std::int64_t>(s.owned.size()) == shape.layers &&
                       static_cast<std::int64_t>(s.windows.size()) == order_.windows();
    if (!whole) refuse_value("LayerShard", "series", "'", s.name, "' has another number of layers or windows");
    works_.emplace_back(order_.windows());
  }
  seed();
}

void LayerShard::settle(std::shared_ptr<Work>& work) {
  if (!work) return;
  // Given up first: after a failure nobody must wait for it again.
  const auto last = std::exchange(work, nullptr);
  last->wait();
}

void LayerShard::start(const ShardLoad& load) {
  if (comm_->size() == 1) return;
  const std::int64_t turn = load.layer - order_.shape().start;
  for (std::size_t i = 0; i < series_.size(); ++i) {
    ShardSeries& s = series_[i];
    auto& work = works_[i][load.window];
    settle(work);
    CommOptions options;
    // Ranks at different layers differ here, and are told so before a weight lands in the wrong window.
    options.plan = plan_hash("layer_shard " + s.name + " layer " + std::to_string(load.layer));
    options.keep = s.keep;
    const Tensor& buffer = owns(load.layer) ? s.owned[turn] : s.windows[load.window];
    work = comm_->ibroadcast(buffer, static_cast<int>(order_.owner(load.layer)), options);
  }
}

void LayerShard::seed() {
  for (const ShardLoad& load : order_.seed()) start(load);
  wait_all();
}

void LayerShard::reach(std::int64_t layer) { start(order_.reach(layer)); }

std::int64_t LayerShard::wait(std::int64_t layer, std::int64_t number) {
  const std::int64_t window = order_.window(layer);
  for (std::size_t i = 0; i < series_.size(); ++i) {
    if (number >= 0 && static_cast<std::size_t>(number) != i) continue;
    auto& work = works_[i][window];
    if (!work) continue;
    if (!owns(layer) || order_.shape().prefetch == 0) {
      settle(work);
    } else if (work->test()) {
      work.reset();
    }
  }
  return window;
}

void LayerShard::poll() {
  for (auto& row : works_) {
    for (auto& work : row) {
      if (work && work->test()) work.reset();
    }
  }
}

void LayerShard::wait_all() {
  for (auto& row : works_) {
    for (auto& work : row) settle(work);
  }
}

void LayerShard::reset() {
  wait_all();
  seed();
}

std::int64_t LayerShard::under_way() const {
  std::int64_t count = 0;
  for (const auto& row : works_) {
    for (const auto& work : row) count += work != nullptr;
  }
  return count;
}

}  // namespace sparsespan::pipeline
