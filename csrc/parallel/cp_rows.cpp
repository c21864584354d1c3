#include "parallel/cp_rows.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "core/parallel.h"
#include "parallel/comm_array.h"

namespace sparsespan {

namespace {

std::byte* bytes_of(const Tensor& t) { return static_cast<std::byte*>(t.data); }

std::int64_t row_stride(const Tensor& t) { return t.strides[0] * size_of(t.dtype); }

// `like` with another number of rows, contiguous, at `data`.
Tensor rows_at(std::byte* data, const Tensor& like, std::int64_t rows) {
  Tensor t = like;
  t.data = data;
  t.shape[0] = rows;
  std::int64_t stride = 1;
  for (int i = t.rank - 1; i >= 0; --i) {
    t.strides[i] = stride;
    stride *= t.shape[i];
  }
  t.writable = true;
  return t;
}

// to[i] = from[index[i]], zeros where the index is -1. Strides and width in bytes.
struct RowBytes {
  std::byte* data;
  std::int64_t stride;
};
void take_rows(const RowBytes& to, const RowBytes& from, const Ints& index, std::int64_t width, int threads) {
  if (width == 0) return;
  const auto bytes = static_cast<std::size_t>(width);
  parallel_rows(static_cast<std::int64_t>(index.size()), width, threads, [&](std::int64_t i, int) {
    std::byte* place = to.data + i * to.stride;
    if (index[i] < 0) {
      std::memset(place, 0, bytes);
    } else {
      std::memcpy(place, from.data + index[i] * from.stride, bytes);
    }
  });
}

void require_result(std::string_view op, const Tensor& x, const Tensor& out, std::int64_t rows) {
  if (!out) refuse_type(op, "out", "is not given, needs an array");
  if (out.dtype != x.dtype) {
    refuse_type(op, "out", "is ", name_of(out.dtype), ", needs ", name_of(x.dtype), " like the rows");
  }
  bool same = out.rank == x.rank && out.shape[0] == rows;
  for (int i = 1; same && i < x.rank; ++i) same = out.shape[i] == x.shape[i];
  if (!same)
    refuse_value(op, "out", "has shape ", out.shape_text(), ", needs ", rows_at(nullptr, x, rows).shape_text());
  require_whole_rows(op, "out", out);
  require_writable(op, "out", out, {&x});
}

// Which rows this rank sends, what each rank brings, and where the received rows go.
struct GatherPlan {
  Ints send;    // local rows, -1 = a row of zeros
  Rows counts;  // [N]
  Ints place;   // row of the received stream for each row of the result
  std::uint64_t salt = 0;
};

GatherPlan gather_all(const CpPlan& plan, std::int64_t rank) {
  GatherPlan g;
  const std::int64_t rows = plan.counts()[rank];
  g.send.assign(plan.padded_len(), -1);
  for (std::int64_t i = 0; i < rows; ++i) g.send[i] = i;
  g.counts.assign(plan.batch().world_size, plan.padded_len());
  g.place = plan.restore_index();
  g.salt = 1;
  return g;
}

GatherPlan gather_last(const CpPlan& plan, std::int64_t rank) {
  GatherPlan g;
  g.counts.assign(plan.batch().world_size, 0);
  g.place = plan.last_row_index();
  for (const auto row : g.place) {
    if (row >= 0) ++g.counts[row / plan.padded_len()];
  }
  Ints next(g.counts.size(), 0);
  for (std::size_t r = 1; r < next.size(); ++r) next[r] = next[r - 1] + g.counts[r - 1];
  for (auto& row : g.place) {
    if (row < 0) continue;
    const std::int64_t owner = row / plan.padded_len();
    if (owner == rank) g.send.push_back(row % plan.padded_len());
    row = next[owner]++;
  }
  g.salt = 2;
  return g;
}

}  // namespace

std::int64_t require_whole_rows(std::string_view op, std::string_view argument, const Tensor& x) {
  if (!x) refuse_type(op, argument, "is not given, needs an array");
  if (x.dtype == DType::none || x.dtype == DType::other) {
    refuse_type(op, argument, "has a dtype that ranks cannot exchange, needs a number type");
  }
  if (x.rank == 0) refuse_value(op, argument, "has no axes, needs rows along the first one");
  std::int64_t stride = 1;
  for (int i = x.rank - 1; i > 0; --i) {
    if (x.shape[i] != 1 && x.size() > 0 && x.strides[i] != stride) {
      refuse_value(op, argument, "has rows that do not lie in one piece; make it contiguous first");
    }
    stride = checked_product(op, argument, stride, x.shape[i]);
  }
  return checked_product(op, argument, stride, size_of(x.dtype));
}

void require_ranks_of(std::string_view op, const CpPlan& plan, const Communicator& comm) {
  if (comm.size() == plan.batch().world_size) return;
  refuse_value(op, "comm", "has ", comm.size(), " ranks, needs the plan's ", plan.batch().world_size);
}

void require_local_rows(std::string_view op, std::string_view argument, const CpPlan& plan, std::int64_t rank,
                        const Tensor& x) {
  const std::int64_t rows = plan.counts()[rank];
  if (x.rank > 0 && x.shape[0] == rows) return;
  refuse_value(op, argument, "has shape ", x.shape_text(), ", needs the ", rows, " local rows that the ",
               name_of(plan.batch().scheme), " plan gives rank ", rank, ": cp.split cuts them");
}

std::uint64_t plan_stamp(const CpPlan& plan, std::uint64_t salt) {
  std::uint64_t stamp = (plan.fingerprint() ^ salt) * 0x9E3779B97F4A7C15ULL;
  stamp ^= stamp >> 29U;
  return stamp == 0 ? 1 : stamp;
}

void split_rows(const CpPlan& plan, const SplitRowsParams& p) {
  constexpr std::string_view kOp = "split";
  const Ints rows = plan.rank_rows(p.rank, -1);
  const std::int64_t width = require_whole_rows(kOp, "x", p.x);
  if (p.x.shape[0] != plan.batch().rows() && p.x.shape[0] != plan.batch().pad_to) {
    refuse_value(kOp, "x", "has ", p.x.shape[0], " rows, needs the plan's ", plan.batch().rows(),
                 plan.batch().pad_to < 0 ? "" : " (or its pad_to rows)");
  }
  require_result(kOp, p.x, p.out, static_cast<std::int64_t>(rows.size()));
  take_rows({bytes_of(p.out), row_stride(p.out)}, {bytes_of(p.x), row_stride(p.x)}, rows, width, p.threads);
}

std::shared_ptr<CpWork> igather_rows(Communicator& comm, const PlanPtr& plan, const GatherRowsParams& p,
                                     CommOptions options) {
  constexpr std::string_view kOp = "gather_rows";
  require_ranks_of(kOp, *plan, comm);
  const std::int64_t width = require_whole_rows(kOp, "x_local", p.x);
  require_local_rows(kOp, "x_local", *plan, comm.rank(), p.x);
  GatherPlan g = p.last ? gather_last(*plan, comm.rank()) : gather_all(*plan, comm.rank());
  require_result(kOp, p.x, p.out, static_cast<std::int64_t>(g.place.size()));
  std::int64_t total = 0;
  for (const auto n : g.counts) total += n;
  const auto sends = static_cast<std::int64_t>(g.send.size());
  const bool direct = sends == p.x.shape[0] && !p.last && (sends <= 1 || row_stride(p.x) == width);
  const CommArray send(kOp, DType::uint8, {direct ? 0 : sends, width});
  const CommArray recv(kOp, DType::uint8, {total, width});
  if (!direct) take_rows({send.data<std::byte>(), width}, {bytes_of(p.x), row_stride(p.x)}, g.send, width, p.threads);
  options.plan = plan_stamp(*plan, g.salt);
  const Tensor in = rows_at(direct ? bytes_of(p.x) : send.data<std::byte>(), p.x, sends);
  auto work =
      comm.iall_gatherv(in, rows_at(recv.data<std::byte>(), p.x, total), g.counts, touching(options, send, recv));
  return std::make_shared<CpWork>(std::move(work), [recv, width, keep = options.keep, out = p.out,
                                                    place = std::move(g.place), threads = p.threads] {
    take_rows({bytes_of(out), row_stride(out)}, {recv.data<std::byte>(), width}, place, width, threads);
  });
}

}  // namespace sparsespan
