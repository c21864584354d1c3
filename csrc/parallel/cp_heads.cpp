#include "parallel/cp_heads.h"

#include <cstring>
#include <utility>

#include "core/parallel.h"
#include "parallel/comm_array.h"

namespace sparsespan {

namespace {

constexpr std::string_view kOp = "exchange_heads";

// t tokens, N blocks of `width` bytes per token.
struct Shape {
  std::int64_t tokens = 0;
  std::int64_t ranks = 1;
  std::int64_t width = 0;
};

// Tokens [t, N, width] <-> blocks [N, t, width].
void pack(const Shape& s, std::byte* tokens, std::byte* blocks, bool into_blocks, int threads) {
  if (s.width == 0) return;
  const auto bytes = static_cast<std::size_t>(s.width);
  parallel_rows(s.tokens, s.width * s.ranks, threads, [&](std::int64_t i, int) {
    for (std::int64_t r = 0; r < s.ranks; ++r) {
      std::byte* token = tokens + (i * s.ranks + r) * s.width;
      std::byte* block = blocks + (r * s.tokens + i) * s.width;
      std::memcpy(into_blocks ? block : token, into_blocks ? token : block, bytes);
    }
  });
}

Shape check(const Communicator& comm, const ExchangeHeadsParams& p) {
  if (!p.x) refuse_type(kOp, "x", "is not given, needs an array");
  if (p.x.dtype == DType::none || p.x.dtype == DType::other) {
    refuse_type(kOp, "x", "has a dtype that ranks cannot exchange, needs a number type");
  }
  if (p.x.rank < 2) refuse_value(kOp, "x", "has shape ", p.x.shape_text(), ", needs [tokens, columns, ...]");
  require_contiguous(kOp, "x", p.x);
  const std::int64_t n = comm.size();
  const int cut = p.back ? 0 : 1;
  if (p.x.shape[cut] % n != 0) {
    refuse_value(kOp, "x", "has ", p.x.shape[cut], p.back ? " tokens" : " columns or heads",
                 ", needs a multiple of the ", n, " ranks");
  }
  Tensor needed = p.x;
  needed.shape[cut] /= n;
  needed.shape[1 - cut] = checked_product(kOp, "x", needed.shape[1 - cut], n);
  if (!p.out) refuse_type(kOp, "out", "is not given, needs an array");
  if (p.out.dtype != p.x.dtype) {
    refuse_type(kOp, "out", "is ", name_of(p.out.dtype), ", needs ", name_of(p.x.dtype), " like x");
  }
  bool same = p.out.rank == p.x.rank;
  for (int i = 0; same && i < p.x.rank; ++i) same = p.out.shape[i] == needed.shape[i];
  if (!same) refuse_value(kOp, "out", "has shape ", p.out.shape_text(), ", needs ", needed.shape_text());
  require_contiguous(kOp, "out", p.out);
  require_writable(kOp, "out", p.out, {&p.x});
  Shape s{p.back ? p.x.shape[0] / n : p.x.shape[0], n, size_of(p.x.dtype)};
  for (int i = 1; i < p.x.rank; ++i) s.width *= p.x.shape[i];
  if (!p.back) s.width /= n;
  return s;
}

// The exchanged blocks: bytes under the shape and dtype that the ranks compare.
Tensor like(const Tensor& x, const CommArray& blocks) {
  Tensor t = x;
  t.data = blocks.tensor().data;
  t.writable = true;
  return t;
}

}  // namespace

std::shared_ptr<CpWork> iexchange_heads(Communicator& comm, const ExchangeHeadsParams& p, const CommOptions& options) {
  const Shape s = check(comm, p);
  const CommArray blocks(kOp, DType::uint8, {s.ranks * s.tokens, s.width});
  const CommOptions held = touching(options, blocks);
  auto* x = static_cast<std::byte*>(p.x.data);
  auto* out = static_cast<std::byte*>(p.out.data);
  if (p.back) {
    auto work = comm.iall_to_all(p.x, like(p.x, blocks), held);
    return std::make_shared<CpWork>(std::move(work), [blocks, s, out, keep = options.keep, threads = p.threads] {
      pack(s, out, blocks.data<std::byte>(), false, threads);
    });
  }
  pack(s, x, blocks.data<std::byte>(), true, p.threads);
  return std::make_shared<CpWork>(comm.iall_to_all(like(p.out, blocks), p.out, held), [] {});
}

}  // namespace sparsespan
