#include <gtest/gtest.h>

#include <bit>
#include <cstring>

#include "attention/merge_states.h"
#include "quant/act_quant.h"
#include "support.h"
#include "transform/hadamard.h"
#include "transform/norms.h"
#include "transform/rope.h"

// Conversions, transforms and merges are defined to the bit: every level gives the generic one's.
namespace sparsespan {
namespace {

using test::Array;

// Runs op(level's outputs) at every level and compares its bytes with those of the lowest.
template <class Op>
void expect_same_bytes_at_every_level(const Op& op) {
  std::vector<std::byte> first;
  for (const Isa isa : test::available_isas()) {
    const test::IsaScope scope(isa);
    const std::vector<std::byte> bytes = op();
    if (first.empty()) first = bytes;
    ASSERT_EQ(bytes.size(), first.size());
    EXPECT_EQ(std::memcmp(bytes.data(), first.data(), bytes.size()), 0) << "at level " << name_of(isa);
  }
}

template <class T>
std::vector<std::byte> bytes_of(const Array<T>& a) {
  const auto* p = reinterpret_cast<const std::byte*>(a.data.data());
  return {p, p + a.data.size() * sizeof(T)};
}

Array<BFloat16> narrow(const Array<float>& x) {
  Array<BFloat16> out(x.shape);
  for (std::size_t i = 0; i < x.data.size(); ++i) out.data[i] = to_bfloat16(x.data[i]);
  return out;
}

TEST(Levels, ActQuantGivesTheSameCodesAndScales) {
  // 131 columns leave a rest behind every vector width; a power-of-two scale and an arbitrary one.
  auto wide = test::random_array<float>({7, 131}, 3);
  for (float& v : wide.data) v *= v * v * 1e3F;
  auto half = narrow(wide);
  for (const ScaleRule rule : {ScaleRule::official, ScaleRule::official_f32}) {
    for (const Tensor& x : {wide.tensor(), half.tensor()}) {
      expect_same_bytes_at_every_level([&] {
        Array<Float8E4M3> y({7, 131});
        Array<float> scale({7, 1});
        act_quant({.x = x, .y = y.tensor(), .scale = scale.tensor(), .block_size = 131, .rule = rule});
        auto bytes = bytes_of(y);
        const auto more = bytes_of(scale);
        bytes.insert(bytes.end(), more.begin(), more.end());
        return bytes;
      });
    }
  }
}

TEST(Levels, DequantGivesTheSameValuesOfEveryCode) {
  Array<Float8E4M3> w({3, 256});
  for (int i = 0; i < 3 * 256; ++i) w.data[i].bits = static_cast<std::uint8_t>(i);
  Array<float> scale({1, 2});
  scale.data = {0x1.3p-40F, 3.7F};
  expect_same_bytes_at_every_level([&] {
    Array<BFloat16> out({3, 256});
    weight_dequant({.w = w.tensor(), .scale = scale.tensor(), .out = out.tensor(), .block = 133});
    return bytes_of(out);
  });
}

TEST(Levels, TransformsGiveTheSameBits) {
  for (const int n : {2, 4, 8, 16, 32, 64, 128, 256, 1024}) {
    auto wide = test::random_array<float>({5, n}, 5U + n);
    auto half = narrow(wide);
    expect_same_bytes_at_every_level([&] {
      Array<float> out({5, n});
      hadamard_transform({.x = wide.tensor(), .out = out.tensor(), .scale = 0.3F});
      return bytes_of(out);
    });
    expect_same_bytes_at_every_level([&] {
      Array<BFloat16> out({5, n});
      hadamard_transform({.x = half.tensor(), .out = out.tensor(), .scale = 0.3F});
      return bytes_of(out);
    });
  }
  auto x = narrow(test::random_array<float>({3, 5, 74}, 9));
  auto table = test::random_array<float>({3, 74}, 10);
  Array<std::int32_t> positions({3});
  positions.data = {2, 0, 1};
  for (const bool pairs : {false, true}) {
    expect_same_bytes_at_every_level([&] {
      Array<BFloat16> out({3, 5, 74});
      apply_rope({.x = x.tensor(),
                  .positions = positions.tensor(),
                  .cos_sin = table.tensor(),
                  .out = out.tensor(),
                  .interleaved = pairs});
      return bytes_of(out);
    });
  }
}

TEST(Levels, NormsGiveTheSameBits) {
  auto x = narrow(test::random_array<float>({4, 203}, 21));
  auto w = test::random_array<float>({203}, 22);
  auto b = test::random_array<float>({203}, 23);
  for (const NormCast cast : {NormCast::after, NormCast::before}) {
    expect_same_bytes_at_every_level([&] {
      Array<BFloat16> out({4, 203});
      rms_norm({.x = x.tensor(), .w = w.tensor(), .out = out.tensor(), .eps = 1e-6F, .cast = cast});
      return bytes_of(out);
    });
  }
  expect_same_bytes_at_every_level([&] {
    Array<BFloat16> out({4, 203});
    layer_norm({.x = x.tensor(), .w = w.tensor(), .b = b.tensor(), .out = out.tensor(), .eps = 1e-6F});
    return bytes_of(out);
  });
}

TEST(Levels, MergesGiveTheSameBits) {
  for (const int n : {1, 2, 3, 4, 5, 7, 8, 9}) {
    auto outs = test::random_array<float>({n, 2, 3, 147}, 31U + n);
    auto lses = test::random_array<float>({n, 2, 3}, 32U + n);
    for (std::size_t i = 0; i < lses.data.size(); i += 4) lses.data[i] = INFINITY;  // empty
    expect_same_bytes_at_every_level([&] {
      Array<BFloat16> out({2, 3, 147});
      Array<float> lse({2, 3});
      merge_states({.outs = outs.tensor(), .lses = lses.tensor(), .out = out.tensor(), .lse = lse.tensor()});
      return bytes_of(out);
    });
  }
}

}  // namespace
}  // namespace sparsespan
