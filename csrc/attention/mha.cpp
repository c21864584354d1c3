#include "attention/mha.h"

#include <algorithm>

#include "attention/checks.h"
#include "attention/engine.h"
#include "attention/head_rows.h"
#include "core/op_scope.h"

namespace sparsespan {

namespace {

constexpr std::int64_t kColumns = 256;  // query rows share staged keys until a tile has so many columns

class RangeKeys final : public KeySource {
 public:
  RangeKeys(const MhaParams& p, std::int64_t group)
      : k_(p.k), v_(p.v), cu_q_(p.cu_q), cu_k_(p.cu_k), causal_(p.causal), group_(group) {}

  void open(const Tile& tile, TileKeys& keys) const override {
    const std::int64_t begin = cu_q_(tile.request);
    const std::int64_t rows = cu_q_(tile.request + 1) - begin;
    const std::int64_t length = cu_k_(tile.request + 1) - cu_k_(tile.request);
    for (std::int64_t i = 0; i < tile.rows; ++i) {
      const std::int64_t seen = length - rows + tile.first - begin + i + 1;
      keys.limits[i] = causal_ ? std::clamp<std::int64_t>(seen, 0, length) : length;
    }
    keys.count = keys.limits[tile.rows - 1];
  }

  void stage(const Tile& tile, const TileKeys&, std::int64_t first, std::int64_t n, float* k, std::int64_t k_stride,
             float* v, std::int64_t v_stride) const override {
    const std::int64_t head = tile.head / group_;
    const std::int64_t row = cu_k_(tile.request) + first;
    for (std::int64_t j = 0; j < n; ++j) {
      k_.load(row + j, head, k + j * k_stride);
      v_.load(row + j, head, v + j * v_stride);
    }
  }

 private:
  HeadRows k_;
  HeadRows v_;
  IntView<1> cu_q_;
  IntView<1> cu_k_;
  bool causal_;
  std::int64_t group_;
};

void require_offsets(std::string_view argument, const Tensor& cu, std::int64_t total) {
  require_int("mha", argument, cu);
  require_shape("mha", argument, cu, {kAny}, "[B + 1]");
  const IntView<1> at(cu);
  const std::int64_t last = cu.shape[0] - 1;
  if (last < 0) refuse_value("mha", argument, "is empty, needs [0, ..., ", total, "]");
  for (std::int64_t b = 0; b <= last; ++b) {
    const std::int64_t before = b == 0 ? 0 : at(b - 1);
    if (at(b) < before || (b == 0 && at(b) != 0)) {
      refuse_value("mha", argument, "is ", at(b), " at place ", b, ", needs 0 first and then no less than before (",
                   before, ")");
    }
  }
  if (at(last) != total) refuse_value("mha", argument, "ends at ", at(last), ", needs the number of rows, ", total);
}

std::int64_t validate(const MhaParams& p) {
  const std::int64_t group = require_key_heads("mha", p.q, p.k, p.v);
  require_scale("mha", p.sm_scale);
  require_offsets("cu_q", p.cu_q, p.q.shape[0]);
  require_offsets("cu_k", p.cu_k, p.k.shape[0]);
  require_shape("mha", "cu_k", p.cu_k, {p.cu_q.shape[0]}, "[B + 1]");
  require_outputs("mha", {&p.out, &p.lse, nullptr}, p.q.shape[0], p.q.shape[1], p.v.shape[2],
                  {&p.q, &p.k, &p.v, &p.cu_q, &p.cu_k});
  return group;
}

}  // namespace

void mha(const MhaParams& p) {
  const OpScope scope;
  const std::int64_t group = validate(p);
  const RangeKeys source(p, group);
  AttentionJob job{.q = p.q,
                   .q_pe = {},
                   .dim = p.q.shape[2],
                   .d_v = p.v.shape[2],
                   .sm_scale = p.sm_scale,
                   .source = &source,
                   .out = p.out,
                   .lse = p.lse,
                   .max_logits = {},
                   .threads = p.threads};
  const IntView<1> cu_q(p.cu_q);
  const IntView<1> cu_k(p.cu_k);
  const std::int64_t step = std::max<std::int64_t>(1, kColumns / group);
  for (std::int64_t b = 0; b + 1 < p.cu_q.shape[0]; ++b) {
    if (cu_q(b) < cu_q(b + 1)) job.max_keys = std::max(job.max_keys, cu_k(b + 1) - cu_k(b));
    for (std::int64_t i = cu_q(b); i < cu_q(b + 1); i += step) {
      for (std::int64_t h = 0; h < p.q.shape[1]; h += group) {
        const std::int64_t rows = std::min(step, cu_q(b + 1) - i);
        job.tiles.push_back({.first = i, .rows = rows, .head = h, .heads = group, .request = b});
      }
    }
  }
  run_attention(job);
}

}  // namespace sparsespan
