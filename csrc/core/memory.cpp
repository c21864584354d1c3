#include "core/memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <new>

#include "core/parallel.h"

namespace sparsespan {

bool outgrows_caches(std::int64_t bytes) {
  static const std::int64_t last_level = [] {
    constexpr std::int64_t kUsual = 32 << 20;
#ifdef _SC_LEVEL3_CACHE_SIZE
    const long size = sysconf(_SC_LEVEL3_CACHE_SIZE);
    return size > 0 ? static_cast<std::int64_t>(size) : kUsual;
#else
    return kUsual;
#endif
  }();
  return bytes >= last_level;
}

namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

}  // namespace

HugeMemory::HugeMemory(std::int64_t bytes, int threads)
    : mapped_((static_cast<std::size_t>(bytes) + 2 * kHugePage - 1) / kHugePage * kHugePage) {
  team_size(1, threads);  // refuses a senseless number before there is anything to give back
  mapping_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping_ == MAP_FAILED) throw std::bad_alloc();
  const auto address = reinterpret_cast<std::uintptr_t>(mapping_);
  data_ = static_cast<std::byte*>(mapping_) + (kHugePage - address % kHugePage) % kHugePage;
#ifdef MADV_HUGEPAGE
  madvise(data_, mapped_ - kHugePage, MADV_HUGEPAGE);  // a wish: where it is refused, the pages stay small
#endif
  const auto step = static_cast<std::int64_t>(kHugePage);
  parallel_for((bytes + step - 1) / step, threads, [&](std::int64_t i, int) {
    std::memset(data_ + i * step, 0, static_cast<std::size_t>(std::min(step, bytes - i * step)));
  });
}

HugeMemory::~HugeMemory() { munmap(mapping_, mapped_); }

}  // namespace sparsespan
