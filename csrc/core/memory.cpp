#include "core/memory.h"

#include <unistd.h>

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

}  // namespace sparsespan
