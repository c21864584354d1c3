#include "core/scratch.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

namespace sparsespan {
namespace {

TEST(Scratch, IsAlignedAndWritableAtAnySize) {
  for (const std::int64_t n : {1L, 63L, 4096L, 65535L, 65536L, 65537L, 524287L, 524288L, 3000000L}) {
    const Scratch<float> a(n);
    const Scratch<float> b(n);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(a.data()) % 64, 0U);
    std::fill_n(a.data(), n, 1.0F);
    std::fill_n(b.data(), n, 2.0F);  // two live pieces are two
    EXPECT_EQ(a.data()[0], 1.0F);
    EXPECT_EQ(a.data()[n - 1], 1.0F);
    EXPECT_EQ(a.size(), n);
  }
  EXPECT_EQ(Scratch<float>(0).data(), nullptr);
}

TEST(Scratch, RefusesWhatNoMachineHas) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers end the program where the system's allocator throws";
#endif
  EXPECT_THROW(Scratch<float>(std::int64_t{1} << 50), std::bad_alloc);
}

TEST(Scratch, ThreadsDoNotShareAPiece) {
  std::vector<std::thread> threads;
  std::vector<int> wrong(4, 0);
  for (std::size_t t = 0; t < wrong.size(); ++t) {
    threads.emplace_back([&wrong, t] {
      for (std::int64_t round = 0; round < 50; ++round) {
        const std::int64_t n = 100000 + 40000 * (round % 7);
        const Scratch<std::int32_t> mine(n);
        std::fill_n(mine.data(), n, static_cast<std::int32_t>(t));
        for (std::int64_t i = 0; i < n; i += 1000) wrong[t] += mine.data()[i] == static_cast<std::int32_t>(t) ? 0 : 1;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(wrong, std::vector<int>(4, 0));
}

}  // namespace
}  // namespace sparsespan
