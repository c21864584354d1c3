#include "core/memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <new>
#include <string>

#include "core/parallel.h"

namespace sparsespan {

namespace {

// One of Linux's descriptions of the caches of CPU 0, "3" or "32768K", in bytes; -1 where there is none.
std::int64_t described(int cache, const char* what) {
  std::ifstream file("/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(cache) + "/" + what);
  std::int64_t value = -1;
  char unit = 0;
  if (!(file >> value)) return -1;
  file >> unit;
  return unit == 'K' ? value << 10 : unit == 'M' ? value << 20 : value;
}

std::int64_t find_last_level_cache() {
  std::int64_t level = 0;
  std::int64_t size = 0;
  for (int cache = 0; described(cache, "level") > 0; ++cache) {
    if (described(cache, "level") < level) continue;
    level = described(cache, "level");
    size = described(cache, "size");
  }
  if (level >= 2 && size > 0) return size;
#ifdef _SC_LEVEL3_CACHE_SIZE
  if (const long named = sysconf(_SC_LEVEL3_CACHE_SIZE); named > 0) return named;
#endif
  return std::int64_t{32} << 20;
}

}  // namespace

std::int64_t last_level_cache_bytes() {
  static const std::int64_t size = find_last_level_cache();
  return size;
}

bool outgrows_caches(std::int64_t bytes) { return bytes >= last_level_cache_bytes(); }

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
