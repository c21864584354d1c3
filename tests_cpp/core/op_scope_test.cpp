#include "core/op_scope.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cfenv>

#include "core/parallel.h"
#include "support.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace sparsespan {
namespace {

// Kept from the compiler, which would divide by its own rules.
float quotient(float a, float b) {
  volatile float x = a;
  volatile float y = b;
  return x / y;
}

bool floats_are_default() {
  return std::fegetround() == FE_TONEAREST && quotient(1.0F, 3.0F) == 0x1.555556p-2F && quotient(1e-30F, 1e10F) > 0.0F;
}

void expect_default_floats_on_all_threads() {
  for (const int threads : {1, 2, 3}) {
    std::atomic<int> wrong{0};
    parallel_for(300, threads, [&](std::int64_t, int) { wrong += floats_are_default() ? 0 : 1; });
    EXPECT_EQ(wrong.load(), 0) << threads;
  }
}

TEST(OpScope, TasksDoNotSeeTheCallersRounding) {
  for (const int mode : {FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO}) {
    std::fesetround(mode);
    expect_default_floats_on_all_threads();
    const int after = std::fegetround();
    std::fesetround(FE_TONEAREST);
    EXPECT_EQ(after, mode);
  }
}

#if defined(__x86_64__)
TEST(OpScope, TasksDoNotSeeTheCallersFlushToZero) {
  const unsigned before = _mm_getcsr();
  const unsigned flushing = (before | 0x8040U) & ~0x3FU;
  _mm_setcsr(flushing);
  expect_default_floats_on_all_threads();
  {
    const OpScope outer;
    const OpScope inner;
    EXPECT_TRUE(floats_are_default());
  }
  const unsigned after = _mm_getcsr();
  _mm_setcsr(before);
  EXPECT_EQ(after, flushing);  // no exception flag more
}
#endif

TEST(OpScope, ALevelSetMeanwhileIsTheNextOps) {
  const Isa best = test::available_isas().back();
  const test::IsaScope level(best);
  {
    const OpScope op;
    set_max_isa(Isa::generic);
    EXPECT_EQ(active_isa(), best);
    std::atomic<int> others{0};
    parallel_for(100, 3, [&](std::int64_t, int) { others += active_isa() == best ? 0 : 1; });
    EXPECT_EQ(others.load(), 0);
  }
  EXPECT_EQ(active_isa(), Isa::generic);
  set_max_isa(best);
  std::atomic<int> others{0};
  parallel_for(100, 3, [&](std::int64_t i, int) {
    if (i == 0) set_max_isa(Isa::generic);
    others += active_isa() == best ? 0 : 1;
  });
  EXPECT_EQ(others.load(), 0);
}

}  // namespace
}  // namespace sparsespan
