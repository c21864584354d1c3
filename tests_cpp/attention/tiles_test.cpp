#include <gtest/gtest.h>

#include "core/convert.h"
#include "kernels/attention.h"
#include "support.h"
#include "tiles_twin.h"

namespace sparsespan {
namespace {

struct Shape {
  std::int64_t cols, dim, d_v, n;
};

constexpr std::int64_t kKeys = 256;
constexpr std::int64_t kCols = 64;
constexpr float kScale = 0.07F;

struct Outcome {
  std::vector<float> m, l, o;
};

Outcome run_kernel(const Shape& x, test::Array<BFloat16>& q, test::Array<BFloat16>& k, std::int64_t stride) {
  const NarrowAttentionKernels& kernels = *narrow_attention_kernels();
  const auto words = [](auto& array) { return reinterpret_cast<std::uint16_t*>(array.data.data()); };
  test::Array<BFloat16> packed_q({kCols, stride});
  test::Array<BFloat16> packed_v({(x.d_v + 15) / 16 * 16, kKeys});
  test::Array<BFloat16> p({kCols, kKeys});
  test::Array<float> s({kKeys, kCols});
  const std::int64_t o_stride = (x.d_v + 15) / 16 * 16;
  Outcome out = {std::vector<float>(static_cast<std::size_t>(x.cols), 7.0F),
                 std::vector<float>(static_cast<std::size_t>(x.cols), 7.0F),
                 std::vector<float>(static_cast<std::size_t>(x.cols * o_stride), 7.0F)};
  // Fetched meanwhile, to no effect: as many rows as are not a multiple of anything, ending in the middle of a line.
  std::vector<const void*> ahead(static_cast<std::size_t>(x.n % 37));
  for (std::size_t i = 0; i < ahead.size(); ++i) ahead[i] = k.data.data() + 3 * i;
  const KernelScope scope(kernels.tiles);
  for (std::int64_t c = 0; c < x.cols; c += 16) {
    kernels.pack_queries(words(q) + c * stride, stride, words(packed_q) + c * stride);
  }
  kernels.pack_values(words(k), stride, x.n, x.d_v, words(packed_v));
  kernels.attend({.q = words(packed_q),
                  .k = words(k),
                  .v = words(packed_v),
                  .k_stride = stride,
                  .cols = x.cols,
                  .d_v = x.d_v,
                  .n = x.n,
                  .sm_scale = kScale,
                  .s = s.data.data(),
                  .p = words(p),
                  .m = out.m.data(),
                  .l = out.l.data(),
                  .o = out.o.data(),
                  .o_stride = o_stride,
                  .ahead = ahead.data(),
                  .ahead_rows = static_cast<std::int64_t>(ahead.size()),
                  .ahead_bytes = 70});
  return out;
}

void expect_twin(const Shape& x) {
  const std::int64_t stride = (x.dim + 31) / 32 * 32;
  auto q = test::random_array<BFloat16>({kCols, stride}, 1);
  auto k = test::random_array<BFloat16>({kKeys, stride}, 2);
  for (auto* a : {&q, &k}) {
    for (std::int64_t i = 0; i < a->shape[0] * stride; ++i) {
      if (i % stride >= x.dim) a->data[static_cast<std::size_t>(i)] = BFloat16{0};
    }
  }
  const Outcome got = run_kernel(x, q, k, stride);
  const auto at = [&](const auto& a, std::int64_t r, std::int64_t d) {
    return to_float(a.data[static_cast<std::size_t>(r * stride + d)]);
  };
  for (std::int64_t c = 0; c < x.cols; ++c) {
    std::vector<float> s;
    float m = -std::numeric_limits<float>::infinity();
    for (std::int64_t j = 0; j < x.n; ++j) {
      s.push_back(kScale * test::narrow_dot(
                               stride, [&](std::int64_t d) { return at(k, j, d); },
                               [&](std::int64_t d) { return at(q, c, d); }));
      m = std::max(m, s.back());
    }
    for (float& v : s) v -= m;
    attention_kernels().exp(s.data(), x.n);
    float l = 0.0F;
    for (const float v : s) l += v;
    const auto column = static_cast<std::size_t>(c);
    ASSERT_EQ(got.m[column], m) << c;
    ASSERT_EQ(got.l[column], l) << c;
    for (std::int64_t d = 0; d < x.d_v; ++d) {
      const float want = test::narrow_dot(
          x.n, [&](std::int64_t j) { return to_float(to_bfloat16(s[static_cast<std::size_t>(j)])); },
          [&](std::int64_t j) { return at(k, j, d); });
      ASSERT_EQ(got.o[static_cast<std::size_t>(c * ((x.d_v + 15) / 16 * 16) + d)], want) << c << " " << d;
    }
  }
}

constexpr Shape kShapes[] = {{64, 576, 512, 256}, {16, 576, 512, 31}, {1, 64, 33, 1},
                             {33, 70, 16, 200},   {48, 96, 96, 33},   {17, 32, 17, 129}};

TEST(AttentionTiles, ABlockEqualsTheScalarTwinBitForBit) {
  if (!test::has_tiles()) GTEST_SKIP() << isa_refusal(Isa::amx);
  const test::IsaScope scope(Isa::amx);
  for (const Shape& x : kShapes) expect_twin(x);
}

TEST(AttentionDotProducts, ABlockEqualsTheScalarTwinBitForBit) {
  if (!isa_refusal(Isa::avx512_bf16).empty()) GTEST_SKIP() << isa_refusal(Isa::avx512_bf16);
  const test::IsaScope scope(Isa::avx512_bf16);
  for (const Shape& x : kShapes) expect_twin(x);
}

}  // namespace
}  // namespace sparsespan
