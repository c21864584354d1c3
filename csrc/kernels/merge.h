#pragma once

// Inner loop of merge_states. noexcept, single-threaded; the results are the same at every level.

#include <cstdint>

namespace sparsespan {

// One row: n outputs of `width`, `leaf_stride` elements apart, merged in rounds of strides P/2, ..., 2, 1 with P the
// power of two at or above n: i with i + stride where both are there, a * weight_a + b * weight_b. A weight of 0
// contributes exactly 0, whatever it would have multiplied.
struct MergeRow {
  const void* outs;
  std::int64_t leaf_stride;
  std::int64_t n;  // at least 1
  std::int64_t width;
  const float* weights;  // [n - 1][2], in the order of the rounds
  float* scratch;        // [n][kMergeChunk]
  void* out;
  bool bfloat16;      // outs
  bool out_bfloat16;  // out
  bool scaled;        // by `factor`, at the end
  float factor;
  bool stream;  // out is not read again soon: past the caches where its address allows it
};

inline constexpr int kMergeChunk = 64;  // elements that go through all rounds at once

struct MergeKernels {
  void (*merge)(const MergeRow&) noexcept;
  void (*fence)() noexcept;  // after the last streamed row of a task
};

const MergeKernels& merge_kernels();

}  // namespace sparsespan
