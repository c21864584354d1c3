#include "parallel/volume.h"

#include <gtest/gtest.h>

#include <map>
#include <stdexcept>

namespace sparsespan {
namespace {

VolumeParams v32(std::string scheme, std::int64_t tokens, std::int64_t ranks) {
  VolumeParams p;
  p.scheme = std::move(scheme);
  p.dims = {.layers = 61,
            .index_layers = 61,
            .hidden = 7168,
            .heads = 128,
            .q_lora = 1536,
            .kv_lora = 512,
            .rope = 64,
            .nope = 128,
            .v_head = 128,
            .topk = 2048};
  p.lengths = {tokens};
  p.ranks = ranks;
  p.kv_bytes = 1152;
  p.index_bytes = 256;
  return p;
}

std::map<std::string, std::int64_t> received(const VolumeParams& p) {
  std::map<std::string, std::int64_t> out;
  for (const VolumeRow& row : volume(p)) out[row.what] = row.received();
  return out;
}

// DeepSeek-V3.2 in bfloat16, N = 8: bytes per token, layer and rank.
TEST(Volume, PublishedFigures) {
  EXPECT_EQ(received(v32("tp", 64, 8))["o_proj output"], 64 * 25088);
  const auto split = received(v32("zigzag", 64, 8));
  EXPECT_EQ(split.at("latent KV") + split.at("index-K"), 64 * 1232);
  auto dcp = v32("dcp", 1, 8);
  dcp.tp = 8;
  dcp.index_k = "replicated";
  EXPECT_EQ(received(dcp)["query heads"], 129024);
  EXPECT_EQ(received(dcp)["partial out"], 229376);
}

TEST(Volume, OneRankMovesNothing) {
  for (const char* scheme : {"tp", "zigzag", "dsa_cp_prefill", "dsa_cp_decode", "layer_shard"}) {
    for (const VolumeRow& row : volume(v32(scheme, 7, 1))) {
      EXPECT_EQ(row.received(), 0) << scheme;
      EXPECT_EQ(row.total(), 0) << scheme;
    }
  }
}

TEST(Volume, BusiestRows) {
  EXPECT_EQ(busiest_rows("zigzag", {13}, 4), 4);
  EXPECT_EQ(busiest_rows("zigzag", {13, 8}, 4), 6);
  EXPECT_EQ(busiest_rows("zigzag_padded", {13, 7}, 4), 6);
  EXPECT_EQ(busiest_rows("ceil_chunk", {13, 7}, 4), 6);
  EXPECT_EQ(busiest_rows("interleave", {13, 7}, 4), 5);
  EXPECT_EQ(busiest_rows("contiguous", {13, 7}, 4), 6);
}

TEST(Volume, RefusesBadInput) {
  EXPECT_THROW(volume(v32("ring", 1, 1)), std::invalid_argument);
  EXPECT_THROW(volume(v32("zigzag", -1, 1)), std::invalid_argument);
  EXPECT_THROW(volume(v32("zigzag", 1, 0)), std::invalid_argument);
  EXPECT_THROW(volume(v32("thd_even", 9, 2)), std::invalid_argument);
  EXPECT_THROW(volume(v32("zigzag", std::int64_t{1} << 40, 1 << 20)), std::invalid_argument);
}

}  // namespace
}  // namespace sparsespan
