#include <gtest/gtest.h>

#include "kernels/attention.h"
#include "kernels/indexer.h"
#include "kernels/scope.h"
#include "support.h"

#if defined(__x86_64__)
#include <xmmintrin.h>

namespace sparsespan {
namespace {

// Kept from the compiler, which would multiply by its own rules.
float product(float a, float b) {
  volatile float x = a;
  volatile float y = b;
  return x * y;
}

TEST(KernelScope, FlushesSubnormalsAboveGenericAndRestoresTheCallersMode) {
  const unsigned before = _mm_getcsr();
  for (const Isa isa : test::available_isas()) {
    const test::IsaScope level(isa);
    for (const unsigned mode : {before, (before & ~0x6000U) | 0x4000U, before | 0x8000U}) {  // default, up, flushing
      _mm_setcsr(mode & ~0x3FU);
      {
        const KernelScope scope(indexer_kernels(true).tiles);
        if (isa != Isa::generic) {
          EXPECT_EQ(product(1e-30F, 1e-10F), 0.0F) << name_of(isa);
          EXPECT_EQ(product(1e-40F, 1e30F), 0.0F) << name_of(isa);
        } else if ((mode & 0x8000U) == 0) {
          EXPECT_GT(product(1e-30F, 1e-10F), 0.0F);
        }
      }
      EXPECT_EQ(_mm_getcsr(), mode & ~0x3FU) << name_of(isa);  // its exception flags included
    }
    _mm_setcsr(before);
  }
}

int switched = 0;

TEST(KernelScope, ReleasesWhatItConfigured) {
  switched = 0;
  {
    const KernelScope scope({[]() noexcept { switched += 1; }, []() noexcept { switched += 10; }});
    EXPECT_EQ(switched, 1);
  }
  EXPECT_EQ(switched, 11);
}

}  // namespace
}  // namespace sparsespan
#endif
