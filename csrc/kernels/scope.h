#pragma once

// What holds while a thread runs kernels, and is put back as it was when it stops.

#include <cstdint>

#include "core/isa.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace sparsespan {

// The tile registers' configuration; both null at levels without tiles.
struct TileSwitch {
  void (*configure)() noexcept = nullptr;
  void (*release)() noexcept = nullptr;
};

// One per task, around its kernels. From avx2 upwards float32 subnormals count as zero, in and out (a subnormal operand
// costs some CPUs fifty times a normal one's time; tile products never know them): what an op returns below 2^-126 is
// zero there. The generic level flushes nothing (OpScope). The caller's MXCSR comes back, its exception flags included.
class KernelScope {
 public:
  explicit KernelScope(TileSwitch tiles = {}) noexcept : tiles_(tiles) {
#if defined(__x86_64__)
    constexpr unsigned kFlushToZero = 0x8000;
    constexpr unsigned kSubnormalsAreZero = 0x0040;
    saved_ = _mm_getcsr();
    if (active_isa() != Isa::generic) _mm_setcsr(saved_ | kFlushToZero | kSubnormalsAreZero);
#endif
    if (tiles_.configure != nullptr) tiles_.configure();
  }
  ~KernelScope() {
    if (tiles_.release != nullptr) tiles_.release();
#if defined(__x86_64__)
    _mm_setcsr(saved_);
#endif
  }
  KernelScope(const KernelScope&) = delete;
  KernelScope& operator=(const KernelScope&) = delete;

 private:
  TileSwitch tiles_;
  unsigned saved_ = 0;
};

}  // namespace sparsespan
