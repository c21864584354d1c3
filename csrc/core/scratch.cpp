#include "core/scratch.h"

#include <sys/mman.h>

#include <array>
#include <cstdint>
#include <mutex>
#include <new>
#include <utility>

namespace sparsespan {

namespace {

constexpr std::align_val_t kAlign{64};
constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::size_t kLarge = std::size_t{256} << 10;
constexpr std::size_t kKept = std::size_t{64} << 20;

// A sanitizer watches the borders of what the standard allocator gives out; there everything comes from it.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kPooled = false;
#else
constexpr bool kPooled = true;
#endif

// The head of a large piece; what the op sees begins behind it.
struct alignas(64) Piece {
  std::size_t bytes;  // of the whole mapping, this head included
};

Piece* map_piece(std::size_t bytes) {
  bytes = (bytes + sizeof(Piece) + kHugePage - 1) / kHugePage * kHugePage;
  void* raw = mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) throw std::bad_alloc();
  auto* begin = static_cast<char*>(raw);
  const std::size_t skip = (kHugePage - reinterpret_cast<std::uintptr_t>(raw) % kHugePage) % kHugePage;
  if (skip != 0) munmap(begin, skip);
  if (skip != kHugePage) munmap(begin + skip + bytes, kHugePage - skip);
  madvise(begin + skip, bytes, MADV_HUGEPAGE);  // advice: what cannot be had is not missed
  return ::new (begin + skip) Piece{bytes};
}

// Pieces that came back, for the next op.
class Pool {
 public:
  // The smallest piece that holds `bytes` without being more than twice as large, or null.
  Piece* take(std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    Piece** best = nullptr;
    for (Piece*& p : pieces_) {
      if (p == nullptr || p->bytes < bytes + sizeof(Piece)) continue;
      if (p->bytes > 2 * bytes && p->bytes > kHugePage) continue;
      if (best == nullptr || p->bytes < (*best)->bytes) best = &p;
    }
    if (best == nullptr) return nullptr;
    kept_ -= (*best)->bytes;
    return std::exchange(*best, nullptr);
  }
  // False when there is no room for it.
  bool keep(Piece* piece) {
    const std::lock_guard lock(mutex_);
    if (kept_ + piece->bytes > kKept) return false;
    for (Piece*& p : pieces_) {
      if (p != nullptr) continue;
      p = piece;
      kept_ += piece->bytes;
      return true;
    }
    return false;
  }

 private:
  std::mutex mutex_;
  std::array<Piece*, 32> pieces_{};
  std::size_t kept_ = 0;
};

// Never destroyed: an op may still run while the process ends.
Pool& pool() {
  static auto* const instance = new Pool;
  return *instance;
}

}  // namespace

void* take_scratch(std::size_t bytes) {
  if (!kPooled || bytes < kLarge) return ::operator new(bytes, kAlign);
  if (bytes > SIZE_MAX / 2) throw std::bad_alloc();
  Piece* piece = pool().take(bytes);
  return (piece != nullptr ? piece : map_piece(bytes)) + 1;
}

void give_back_scratch(void* memory, std::size_t bytes) noexcept {
  if (memory == nullptr) return;
  if (!kPooled || bytes < kLarge) {
    ::operator delete(memory, kAlign);
    return;
  }
  Piece* piece = static_cast<Piece*>(memory) - 1;
  if (!pool().keep(piece)) munmap(piece, piece->bytes);
}

}  // namespace sparsespan
