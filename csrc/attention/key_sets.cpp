#include "attention/key_sets.h"

#include <algorithm>

namespace sparsespan {

namespace {

constexpr std::int64_t kRoomBytes = 16 << 20;

std::uint64_t low_bits(std::int64_t n) { return n >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << n) - 1; }

// Groups at a time: sets of all heads' rows are made before any head is computed.
std::int64_t groups_at_a_time(std::int64_t padded, std::int64_t most) {
  const std::int64_t bytes = (kSetTiles + 1) * static_cast<std::int64_t>(sizeof(std::uint64_t)) * padded;
  return std::clamp<std::int64_t>(kRoomBytes / std::max<std::int64_t>(1, bytes), 1, std::max<std::int64_t>(1, most));
}

}  // namespace

KeySets::KeySets(const Tensor& indices, const Tensor& topk_length, std::int64_t keys, std::int64_t unit,
                 std::int64_t heads, std::int64_t tile_rows, std::int64_t most_groups)
    : indices_(indices),
      length_(topk_length),
      has_length_(topk_length.present),
      keys_(keys),
      unit_(unit),
      heads_(heads),
      tile_rows_(tile_rows),
      padded_(round_up(keys, kBlockKeys)),
      groups_(groups_at_a_time(padded_, most_groups)),
      kept_(groups_ * padded_),
      starts_(groups_ * (blocks() + 1)),
      seen_(groups_ * kSetTiles * padded_),
      ranges_(groups_ * kSetTiles * blocks()) {}

KeySet KeySets::operator[](std::int64_t place) const {
  return {.kept = kept_.data() + place * padded_,
          .starts = starts_.data() + place * (blocks() + 1),
          .seen = seen_.data() + place * kSetTiles * padded_,
          .ranges = ranges_.data() + place * kSetTiles * blocks()};
}

// Sets the row's bits at its keys; false, and nothing set, when a key comes twice. Without validation a key out of
// range is nobody's: it must not be a place to write to.
bool KeySets::mark(std::int64_t row, std::uint64_t bits, std::uint64_t* words) const {
  const std::int64_t columns = has_length_ ? length_(row) : indices_.shape[1];
  bool repeated = false;
  for (std::int64_t j = 0; j < columns; ++j) {
    const std::int64_t key = indices_(row, j);
    if (key < 0 || key >= keys_) continue;
    repeated = repeated || (words[key] & bits) != 0;
    words[key] |= bits;
  }
  if (!repeated) return true;
  for (std::int64_t j = 0; j < columns; ++j) {
    if (const std::int64_t key = indices_(row, j); key >= 0 && key < keys_) words[key] &= ~bits;
  }
  return false;
}

// Moves what somebody wants together, block by block; the words are in the order of all keys before.
void KeySets::keep(const KeySet& set, std::int64_t tiles, std::int64_t rows) const {
  std::int64_t count = 0;
  for (std::int64_t b = 0; b < blocks(); ++b) {
    set.starts[b] = count;
    for (std::int64_t key = b * kBlockKeys; key < (b + 1) * kBlockKeys; key += unit_) {
      std::uint64_t wanted = 0;
      for (std::int64_t i = 0; i < unit_; ++i) {
        std::uint64_t any = 0;
        for (std::int64_t t = 0; t < tiles; ++t) {
          any |= set.seen[t * padded_ + count + i] = set.seen[t * padded_ + key + i];
        }
        set.kept[count + i] = any != 0 ? key + i : -1;
        wanted |= any;
      }
      if (wanted != 0) count += unit_;
    }
    for (std::int64_t t = 0; t < tiles; ++t) {
      constexpr std::int64_t kAligned = 32;  // what narrow kernels take together
      const std::uint64_t* words = set.seen + t * padded_ + set.starts[b];
      const std::uint64_t whole = low_bits(std::min(tile_rows_, rows - t * tile_rows_) * heads_);
      std::int64_t first = 0;
      std::int64_t last = count - set.starts[b];
      while (first < last && words[first] == 0) ++first;
      while (last > first && words[last - 1] == 0) --last;
      first = first / kAligned * kAligned;
      const bool all = std::all_of(words + first, words + last, [&](std::uint64_t w) { return w == whole; });
      set.ranges[t * blocks() + b] = {static_cast<std::int32_t>(first), static_cast<std::int32_t>(last), all};
    }
  }
  set.starts[blocks()] = count;
}

void KeySets::build(std::int64_t place, std::int64_t first, std::int64_t last, std::uint8_t* repeats) const {
  const KeySet set = (*this)[place];
  const std::int64_t tiles = ceil_div(last - first, tile_rows_);
  std::fill_n(set.seen, tiles * padded_, std::uint64_t{0});
  for (std::int64_t row = first; row < last; ++row) {
    const std::int64_t tile = (row - first) / tile_rows_;
    const std::int64_t place_in_tile = (row - first) % tile_rows_;
    const std::uint64_t bits = low_bits(heads_) << (place_in_tile * heads_);
    repeats[row] = mark(row, bits, set.seen + tile * padded_) ? 0 : 1;
  }
  keep(set, tiles, last - first);
}

}  // namespace sparsespan
