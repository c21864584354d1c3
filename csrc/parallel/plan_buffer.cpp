#include "parallel/plan_buffer.h"

#include <algorithm>
#include <mutex>
#include <vector>

namespace sparsespan {

namespace {

constexpr std::int64_t kSmall = 1 << 14;  // words; the allocator itself keeps small blocks
constexpr std::int64_t kKeep = 1 << 23;   // words kept in all: 32 MiB

struct Block {
  std::int32_t* data;
  std::int64_t capacity;
};

struct Pool {
  std::mutex mutex;
  std::vector<Block> blocks;
  std::int64_t words = 0;
  // Room for every block that can be kept: giving back allocates nothing and cannot fail.
  Pool() { blocks.reserve(kKeep / kSmall + 1); }
};

// Never destroyed: plans may outlive static destructors.
Pool& pool() {
  static auto* const kept = new Pool;
  return *kept;
}

// The smallest kept block that fits and is not more than twice too large, else a new one.
Block take(std::int64_t count) {
  if (count >= kSmall) {
    Pool& kept = pool();
    const std::lock_guard<std::mutex> lock(kept.mutex);
    auto best = kept.blocks.end();
    for (auto b = kept.blocks.begin(); b != kept.blocks.end(); ++b) {
      if (b->capacity < count || b->capacity > 2 * count) continue;
      if (best == kept.blocks.end() || b->capacity < best->capacity) best = b;
    }
    if (best != kept.blocks.end()) {
      const Block found = *best;
      kept.blocks.erase(best);
      kept.words -= found.capacity;
      return found;
    }
  }
  return {new std::int32_t[std::max<std::int64_t>(count, 1)], count};
}

// The oldest blocks go when there are too many words.
void give_back(Block block) noexcept {
  if (block.capacity < kSmall || block.capacity > kKeep) {
    delete[] block.data;
    return;
  }
  Pool& kept = pool();
  const std::lock_guard<std::mutex> lock(kept.mutex);
  while (kept.words + block.capacity > kKeep) {
    kept.words -= kept.blocks.front().capacity;
    delete[] kept.blocks.front().data;
    kept.blocks.erase(kept.blocks.begin());
  }
  kept.blocks.push_back(block);
  kept.words += block.capacity;
}

}  // namespace

PlanBuffer::PlanBuffer(std::int64_t count) : count_(count) {
  const Block block = take(count);
  data_ = block.data;
  capacity_ = block.capacity;
}

PlanBuffer::~PlanBuffer() { give_back({data_, capacity_}); }

}  // namespace sparsespan
