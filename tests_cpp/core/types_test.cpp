#include "core/types.h"

#include <gtest/gtest.h>

#include <cmath>

namespace sparsespan {
namespace {

TEST(Types, EveryE4M3CodeRoundTrips) {
  for (int code = 0; code < 256; ++code) {
    const float value = to_float(Float8E4M3{static_cast<std::uint8_t>(code)});
    if (std::isnan(value)) {
      EXPECT_EQ(code & 0x7F, 0x7F);
      EXPECT_EQ(to_float8_e4m3(value).bits & 0x7F, 0x7F);
    } else {
      EXPECT_EQ(to_float8_e4m3(value).bits, code) << value;
    }
  }
}

TEST(Types, E4M3GoldenValues) {
  EXPECT_EQ(to_float(Float8E4M3{0x7E}), 448.0F);
  EXPECT_EQ(to_float(Float8E4M3{0x01}), 0x1p-9F);
  EXPECT_EQ(to_float(Float8E4M3{0x08}), 0x1p-6F);
  EXPECT_EQ(to_float(Float8E4M3{0x38}), 1.0F);
  EXPECT_EQ(to_float(Float8E4M3{0xB8}), -1.0F);
}

// Between two neighbouring codes everything below the midpoint goes down, everything above goes up and the midpoint
// goes to the even code.
TEST(Types, E4M3RoundsToNearestEven) {
  for (int code = 0; code < 0x7E; ++code) {
    const float low = to_float(Float8E4M3{static_cast<std::uint8_t>(code)});
    const float high = to_float(Float8E4M3{static_cast<std::uint8_t>(code + 1)});
    const float middle = 0.5F * (low + high);  // exact: neighbours differ by one step
    EXPECT_EQ(to_float8_e4m3(std::nextafter(middle, 0.0F)).bits, code);
    EXPECT_EQ(to_float8_e4m3(std::nextafter(middle, 1e9F)).bits, code + 1);
    EXPECT_EQ(to_float8_e4m3(middle).bits, code + (code & 1)) << middle;
    EXPECT_EQ(to_float8_e4m3(-middle).bits, 0x80 | (code + (code & 1)));
  }
}

TEST(Types, E4M3SaturatesAndKeepsNaN) {
  EXPECT_EQ(to_float8_e4m3(464.0F).bits, 0x7E);
  EXPECT_EQ(to_float8_e4m3(1e30F).bits, 0x7E);
  EXPECT_EQ(to_float8_e4m3(-INFINITY).bits, 0xFE);
  EXPECT_EQ(to_float8_e4m3(NAN).bits & 0x7F, 0x7F);
  EXPECT_EQ(to_float8_e4m3(-0.0F).bits, 0x80);
}

TEST(Types, BFloat16RoundsToNearestEven) {
  EXPECT_EQ(to_bfloat16(1.0F).bits, 0x3F80);
  EXPECT_EQ(to_bfloat16(std::bit_cast<float>(0x3F808000U)).bits, 0x3F80);  // tie, even stays
  EXPECT_EQ(to_bfloat16(std::bit_cast<float>(0x3F818000U)).bits, 0x3F82);  // tie, odd goes up
  EXPECT_EQ(to_bfloat16(std::bit_cast<float>(0x3F808001U)).bits, 0x3F81);
  EXPECT_EQ(to_bfloat16(3.4e38F).bits, 0x7F80);  // carries into infinity
  EXPECT_TRUE(std::isnan(to_float(to_bfloat16(std::bit_cast<float>(0x7F800001U)))));
}

TEST(Types, E8M0IsAPowerOfTwo) {
  EXPECT_EQ(to_float(Float8E8M0{127}), 1.0F);
  EXPECT_EQ(to_float(Float8E8M0{0}), std::ldexp(1.0F, -127));
  EXPECT_EQ(to_float(Float8E8M0{254}), std::ldexp(1.0F, 127));
  EXPECT_TRUE(std::isnan(to_float(Float8E8M0{255})));
}

}  // namespace
}  // namespace sparsespan
