#pragma once

// What the machine's memory is like.

#include <cstddef>
#include <cstdint>

namespace sparsespan {

// The last-level cache that a core of this machine can use: what the system says of CPU 0, not the C library, which
// may add up the caches of all core complexes of a processor (glibc 2.36 says 320 MB of a core's 32).
std::int64_t last_level_cache_bytes();

// Whether so many bytes leave nothing of themselves in the last-level cache: who writes them does better to write past
// it. Decides about speed only, never about bits.
bool outgrows_caches(std::int64_t bytes);

// Memory of its own from the operating system, at a multiple of 2 MB, asked to be backed by huge pages: a gather of
// rows from a large pool then misses the translation cache far less. Zeros, touched for the first time by the threads
// that ops run on, so that its pages lie where they work. Goes back to the system as a whole.
class HugeMemory {
 public:
  // Throws std::bad_alloc where the system has no such room.
  HugeMemory(std::int64_t bytes, int threads);
  ~HugeMemory();
  HugeMemory(const HugeMemory&) = delete;
  HugeMemory& operator=(const HugeMemory&) = delete;

  std::byte* data() const { return data_; }

 private:
  void* mapping_;
  std::size_t mapped_;
  std::byte* data_;
};

}  // namespace sparsespan
