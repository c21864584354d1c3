#include "attention/merge_states.h"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstring>

#include "attention/checks.h"
#include "attention/state.h"
#include "core/memory.h"
#include "core/row_blocks.h"
#include "core/scratch.h"
#include "kernels/merge.h"

namespace sparsespan {

namespace {

constexpr std::string_view kOp = "merge_states";

void validate(const MergeStatesParams& p) {
  require_dtype(kOp, "outs", p.outs, {DType::float32, DType::bfloat16});
  require_shape(kOp, "outs", p.outs, {kAny, kAny, kAny, kAny}, "[n, T, H, D]");
  require_inner_contiguous(kOp, "outs", p.outs);
  const auto& s = p.outs.shape;
  require_dtype(kOp, "lses", p.lses, {DType::float32});
  require_shape(kOp, "lses", p.lses, {s[0], s[1], s[2]}, "[n, T, H]");
  require_sink(kOp, p.attn_sink, s[2]);
  require_outputs(kOp, {&p.out, &p.lse, nullptr}, s[1], s[2], s[3], {&p.outs, &p.lses, &p.attn_sink});
}

// Weights of one row's rounds, [n - 1][2], from its n leaves in `lses`; returns the lse of their union. `lses` is used
// up.
float weigh(float* lses, std::int64_t n, float* weights) {
  if (n == 0) return kMinusInf;
  for (std::int64_t i = 0; i < n; ++i) {
    if (std::isinf(lses[i])) lses[i] = kMinusInf;
  }
  auto stride = static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(n))) / 2;
  for (std::int64_t live = n; live > 1; live = stride, stride /= 2) {
    for (std::int64_t i = 0; i + stride < live; ++i) {
      const MergeWeights w = merge_weights(lses[i], lses[i + stride]);
      *weights++ = w.a;
      *weights++ = w.b;
      lses[i] = w.lse;
    }
  }
  return lses[0];
}

// Room of one slot.
struct Room {
  float* chunks;   // [n][kMergeChunk]
  float* lses;     // [n]
  float* weights;  // [n][2]

  static std::int64_t floats(std::int64_t n) { return round_up(n * (kMergeChunk + 3), 16); }
  Room(float* memory, std::int64_t n)
      : chunks(memory), lses(memory + n * kMergeChunk), weights(memory + n * (kMergeChunk + 1)) {}
};

class Merger {
 public:
  explicit Merger(const MergeStatesParams& p)
      : p_(p),
        kernels_(merge_kernels()),
        heads_(p.outs.shape[2]),
        stream_(outgrows_caches(p.out.shape[0] * p.out.shape[1] * p.out.shape[2] * size_of(p.out.dtype))) {}

  // Row r = t * heads + h.
  void run(std::int64_t r, const Room& room) const {
    const std::int64_t n = p_.outs.shape[0];
    const std::int64_t t = r / heads_;
    const std::int64_t h = r % heads_;
    const float* lses = static_cast<const float*>(p_.lses.data) + t * p_.lses.strides[1] + h * p_.lses.strides[2];
    for (std::int64_t i = 0; i < n; ++i) room.lses[i] = lses[i * p_.lses.strides[0]];
    const std::byte* outs = static_cast<const std::byte*>(p_.outs.data) +
                            (t * p_.outs.strides[1] + h * p_.outs.strides[2]) * size_of(p_.outs.dtype);
    prefetch(outs);
    const float lse = weigh(room.lses, n, room.weights);
    auto* out =
        static_cast<std::byte*>(p_.out.data) + (t * p_.out.strides[0] + h * p_.out.strides[1]) * size_of(p_.out.dtype);
    p_.lse.as<float, 2>()(t, h) = lse;
    if (lse == kMinusInf) {  // whatever stands in the outputs
      std::memset(out, 0, static_cast<std::size_t>(p_.out.shape[2]) * size_of(p_.out.dtype));
      return;
    }
    const bool sink = p_.attn_sink.present;
    kernels_.merge({.outs = outs,
                    .leaf_stride = p_.outs.strides[0],
                    .n = n,
                    .width = p_.out.shape[2],
                    .weights = room.weights,
                    .scratch = room.chunks,
                    .out = out,
                    .bfloat16 = p_.outs.dtype == DType::bfloat16,
                    .out_bfloat16 = p_.out.dtype == DType::bfloat16,
                    .scaled = sink,
                    .factor = sink ? sink_factor(p_.attn_sink.as<const float, 1>()(h), lse) : 1.0F,
                    .stream = stream_});
  }
  void finish() const {
    if (stream_) kernels_.fence();
  }

 private:
  // The leaves come from memory while the weights are computed.
  void prefetch(const std::byte* outs) const {
    const std::int64_t bytes = std::min<std::int64_t>(kPrefetched, p_.out.shape[2] * size_of(p_.outs.dtype));
    for (std::int64_t i = 0; i < std::min<std::int64_t>(p_.outs.shape[0], 8); ++i) {
      const std::byte* leaf = outs + i * p_.outs.strides[0] * size_of(p_.outs.dtype);
      for (std::int64_t line = 0; line < bytes; line += 64) __builtin_prefetch(leaf + line);
    }
  }

  static constexpr std::int64_t kPrefetched = 512;
  const MergeStatesParams& p_;
  const MergeKernels& kernels_;
  std::int64_t heads_;
  bool stream_;
};

}  // namespace

void merge_states(const MergeStatesParams& p) {
  validate(p);
  const std::int64_t n = p.outs.shape[0];
  const std::int64_t rows = p.outs.shape[1] * p.outs.shape[2];
  if (rows == 0) return;
  const std::int64_t elements = std::max<std::int64_t>(1, n) * p.outs.shape[3];
  const Scratch<float> scratch(block_team_size(rows, elements, p.threads) * Room::floats(n));
  const Merger merger(p);
  parallel_row_blocks(rows, elements, p.threads, [&](std::int64_t first, std::int64_t last, int slot) {
    const Room room(scratch.data() + slot * Room::floats(n), n);
    for (std::int64_t r = first; r < last; ++r) merger.run(r, room);
    merger.finish();
  });
}

}  // namespace sparsespan
