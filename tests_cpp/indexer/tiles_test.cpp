#include <gtest/gtest.h>

#include "kernels/indexer.h"
#include "support.h"
#include "tiles_twin.h"

namespace sparsespan {
namespace {

struct Shape {
  std::int64_t heads;
  std::int64_t dim;
};

template <class T>
void expect_twin(Shape shape, Narrow type, bool few, int begin, int end) {
  const IndexerKernels& kernels = indexer_kernels(true);
  const auto [heads, dim] = shape;
  const int panel = kernels.panel_keys;
  auto q = test::random_array<T>({heads, dim}, 1);
  auto k = test::random_array<T>({panel, dim}, 2);
  const auto w = test::random_array<float>({heads}, 3);
  const auto scale = test::random_array<float>({panel}, 4);
  test::Array<float> packed_q({kernels.query_floats(heads, dim)});
  test::Array<float> packed_k({kernels.panel_floats(heads, dim)});
  test::Array<float> scores({panel});
  std::vector<const void*> rows(static_cast<std::size_t>(panel));
  for (int j = 0; j < panel; ++j) rows[static_cast<std::size_t>(j)] = k.data.data() + j * dim;
  {
    const KernelScope scope(kernels.tiles);
    kernels.pack_query(q.data.data(), dim * static_cast<std::int64_t>(sizeof(T)), type, kE4M3Table.data(), heads, dim,
                       few, packed_q.data.data());
    kernels.pack(rows.data(), type, kE4M3Table.data(), dim, few, packed_k.data.data());
    kernels.score(packed_q.data.data(), w.data.data(), heads, dim, packed_k.data.data(), few, scale.data.data(), begin,
                  end, scores.data.data());
  }
  for (int j = begin; j < end; ++j) {
    std::vector<float> parts(16, 0.0F);
    for (std::int64_t h = 0; h < heads; ++h) {
      const float x = test::tile_dot(
          dim, [&](std::int64_t d) { return test::as_float(q.data[static_cast<std::size_t>(h * dim + d)]); },
          [&](std::int64_t d) { return test::as_float(k.data[static_cast<std::size_t>(j * dim + d)]); });
      float& part = parts[static_cast<std::size_t>(h % 16)];
      part = std::fma(std::max(x, 0.0F), w.data[static_cast<std::size_t>(h)], part);
    }
    const float want = test::merge_16(parts) * scale.data[static_cast<std::size_t>(j)];
    ASSERT_EQ(std::bit_cast<std::uint32_t>(scores.data[static_cast<std::size_t>(j)]),
              std::bit_cast<std::uint32_t>(want))
        << "heads " << heads << " dim " << dim << " few " << few << " key " << j;
  }
}

TEST(IndexerTiles, EveryFormEqualsTheScalarTwinBitForBit) {
  if (!test::has_tiles()) GTEST_SKIP() << isa_refusal(Isa::amx);
  const test::IsaScope scope(Isa::amx);
  for (const Shape shape : {Shape{64, 128}, {32, 128}, {16, 64}, {1, 128}, {17, 96}, {48, 33}, {9, 7}, {33, 130}}) {
    for (const bool few : {false, true}) {
      expect_twin<Float8E4M3>(shape, Narrow::e4m3, few, 0, 256);
      expect_twin<BFloat16>(shape, Narrow::bfloat16, few, 0, 256);
      expect_twin<Float8E4M3>(shape, Narrow::e4m3, few, 37, 101);
    }
  }
}

}  // namespace
}  // namespace sparsespan
