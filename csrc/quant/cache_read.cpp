#include "quant/cache_read.h"

#include <cmath>
#include <cstring>

#include "core/memory.h"
#include "core/row_blocks.h"
#include "quant/cache_write.h"
#include "quant/token.h"

namespace sparsespan {

namespace {

constexpr std::string_view kOp = "read_kv";

// [n] or [R, C] as [rows, columns].
IntView<2> slot_grid(const Tensor& slots) {
  Tensor grid = slots;
  if (slots.rank == 1) {
    grid.shape = {1, slots.shape[0]};
    grid.strides = {0, slots.strides[0]};
  }
  return IntView<2>(grid);
}

std::string position(const Tensor& slots, std::int64_t i, std::int64_t j) {
  if (slots.rank == 1) return detail::join("slots[", j, "]");
  return detail::join("slots[", i, ", ", j, "]");
}

void require_scales(const TokenCodec& codec, std::int64_t slot) {
  const int tiles = codec.info().scale_field()->count;
  for (int tile = 0; tile < tiles; ++tile) {
    const float scale = codec.scale(slot, tile);
    if (std::isfinite(scale) && scale >= 0.0F) continue;
    refuse_value(kOp, "cache", "has a scale of ", scale, " in slot ", slot, ", tile ", tile,
                 ", needs finite scales >= 0: was the slot written, and with this layout and page_size?");
  }
}

void require_data(const ReadKvParams& p, const PagedCache& cache, const TokenCodec& codec) {
  const auto slots = slot_grid(p.slots);
  const bool scaled = codec.info().tile() != 0;
  for (std::int64_t i = 0; i < slots.shape[0]; ++i) {
    for (std::int64_t j = 0; j < slots.shape[1]; ++j) {
      const std::int64_t slot = slots(i, j);
      if (slot < -1 || slot >= cache.slots()) {
        refuse_index(kOp, position(p.slots, i, j), "is ", slot, ", needs -1 (a row of zeros) or a slot in [0, ",
                     cache.slots(), ")");
      }
      if (scaled && slot >= 0) require_scales(codec, slot);
    }
  }
}

}  // namespace

void read_kv(const ReadKvParams& p) {
  require_int(kOp, "slots", p.slots);
  if (p.slots.rank != 1) require_shape(kOp, "slots", p.slots, {kAny, kAny}, "[n] or [R, C]");
  const PagedCache cache = require_paged_cache(kOp, "cache", p.cache, p.layout, p.page_size);
  const TokenCodec codec(cache);
  const KvLayoutInfo& info = codec.info();
  const std::int64_t rows = p.slots.size();
  require_output(kOp, "out", p.out, info.decoded, {rows, info.dim}, "[number of slots, dim]", {&p.cache, &p.slots});
  if (p.validate == Validate::full) require_data(p, cache, codec);
  const auto slots = slot_grid(p.slots);
  const std::int64_t columns = slots.shape[1];
  const int element = size_of(info.decoded);
  const std::int64_t bytes = info.dim * element;
  const auto read = [&](std::int64_t t, std::byte* out) {
    const std::int64_t slot = slots(t / columns, t % columns);
    if (slot < 0) {
      std::memset(out, 0, static_cast<std::size_t>(bytes));
    } else {
      codec.decode(slot, out);
    }
  };
  const bool stream = outgrows_caches(rows * bytes);
  parallel_row_blocks(rows, info.dim, p.threads, [&](std::int64_t first, std::int64_t last, int) {
    alignas(64) std::byte stage[kKvDim * sizeof(float)];
    for (std::int64_t t = first; t < last; ++t) {
      std::byte* out = static_cast<std::byte*>(p.out.data) + t * p.out.strides[0] * element;
      read(t, stream ? stage : out);
      if (stream) codec.kernels().copy_out(stage, out, bytes);
    }
    if (stream) codec.kernels().fence();
  });
}

}  // namespace sparsespan
