#include "core/memory.h"

#include <gtest/gtest.h>

namespace sparsespan {
namespace {

TEST(Memory, KnowsTheLastLevelCache) {
  const std::int64_t size = last_level_cache_bytes();
  EXPECT_GE(size, std::int64_t{128} << 10);
  EXPECT_LE(size, std::int64_t{4} << 30);
  EXPECT_EQ(size % 1024, 0);
  EXPECT_TRUE(outgrows_caches(size));
  EXPECT_FALSE(outgrows_caches(size - 1));
}

}  // namespace
}  // namespace sparsespan
