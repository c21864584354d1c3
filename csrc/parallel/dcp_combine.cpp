#include "parallel/dcp_combine.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "attention/checks.h"
#include "attention/merge_states.h"
#include "attention/state.h"
#include "core/convert.h"
#include "core/parallel.h"
#include "parallel/comm_array.h"

namespace sparsespan {

namespace {

constexpr std::string_view kOp = "dcp_combine";
constexpr std::string_view kCombines[] = {"ag_rs", "a2a", "ar"};
constexpr std::string_view kPayloads[] = {"fp32", "bf16"};

// A rank's partial results, row by row; `heads` are those of one rank.
struct Partial {
  const Tensor& out;
  TensorView<const float, 2> lse;
  std::int64_t ranks;

  std::int64_t rows() const { return out.shape[0]; }
  std::int64_t heads() const { return out.shape[1] / ranks; }
  std::int64_t width() const { return out.shape[2]; }
};

// out[i] = weight * row (or row itself), rounded once to the payload.
void load_row(const Partial& p, std::int64_t t, std::int64_t head, float* to) {
  if (p.out.dtype == DType::bfloat16) {
    row_to_float(p.out.as<const BFloat16, 3>().row(t, head), to, p.width());
  } else {
    row_to_float(p.out.as<const float, 3>().row(t, head), to, p.width());
  }
}

template <class T>
void store_weighted(const Partial& p, std::int64_t t, std::int64_t head, float weight, float* row, T* to) {
  if (weight == 0.0F) {  // exactly 0, whatever stands in the output of a rank without keys
    std::fill_n(to, p.width(), T{});
    return;
  }
  if (weight == 1.0F && p.out.dtype == dtype_of<T>::value) {
    std::copy_n(p.out.as<const T, 3>().row(t, head), p.width(), to);
    return;
  }
  load_row(p, t, head, row);
  for (std::int64_t d = 0; d < p.width(); ++d) row[d] *= weight;
  row_from_float(row, to, p.width());
}

// Calls f(t, head of all ranks, rank that gets it, head there, slot) for every partial row.
template <class F>
void for_heads(const Partial& p, int threads, const F& f) {
  parallel_rows(p.rows(), p.ranks * p.heads() * p.width(), threads, [&](std::int64_t t, int slot) {
    for (std::int64_t q = 0; q < p.ranks; ++q) {
      for (std::int64_t h = 0; h < p.heads(); ++h) f(t, q * p.heads() + h, q, h, slot);
    }
  });
}

Scratch<float> row_per_slot(const Partial& p, int threads) {
  return Scratch<float>(row_team_size(p.rows(), p.ranks * p.heads() * p.width(), threads) * p.width());
}

// Parts [N, T, h, width] of which each row is `extra` elements wider.
Tensor parts_of(const CommArray& packed, std::int64_t width) {
  Tensor t = packed.tensor();
  t.shape[3] = width;
  return t;
}

void merge(const DcpCombineParams& p, const Tensor& outs, const Tensor& lses) {
  merge_states(
      {.outs = outs, .lses = lses, .attn_sink = p.attn_sink, .out = p.out, .lse = p.lse, .threads = p.threads});
}

// One exchange: [N, T, h, d_v | lse], the lse as one float32, or as the bytes of two bfloat16.
template <class T>
void all_to_all(Communicator& comm, const Partial& part, const DcpCombineParams& p) {
  constexpr std::int64_t kLse = sizeof(float) / sizeof(T);
  const std::int64_t wide = part.width() + kLse;
  const CommArray send(kOp, dtype_of<T>::value, {part.ranks, part.rows(), part.heads(), wide});
  const CommArray recv(kOp, dtype_of<T>::value, {part.ranks, part.rows(), part.heads(), wide});
  const auto place = send.tensor().as<T, 4>();
  const Scratch<float> scratch = row_per_slot(part, p.threads);
  for_heads(part, p.threads, [&](std::int64_t t, std::int64_t head, std::int64_t q, std::int64_t h, int slot) {
    T* to = place.row(q, t, h);
    const float lse = part.lse(t, head);
    store_weighted(part, t, head, std::isinf(lse) ? 0.0F : 1.0F, scratch.data() + slot * part.width(), to);
    std::memcpy(to + part.width(), &lse, sizeof lse);
  });
  comm.iall_to_all(send.tensor(), recv.tensor(), touching(p.comm, send, recv))->wait();
  Scratch<float> lses(part.ranks * part.rows() * part.heads());
  const T* from = recv.data<T>() + part.width();
  for (std::int64_t i = 0; i < lses.size(); ++i) std::memcpy(lses.data() + i, from + i * wide, sizeof(float));
  Tensor lse = p.lse;
  lse.data = lses.data();
  lse.rank = 3;
  lse.shape = {part.ranks, part.rows(), part.heads()};
  lse.strides = {part.rows() * part.heads(), part.heads(), 1};
  merge(p, parts_of(recv, part.width()), lse);
}

// ln sum exp over the ranks, in their order; infinite ones are empty. NaN spreads.
float merged_lse(const float* lses, std::int64_t stride, std::int64_t ranks) {
  double top = -HUGE_VAL;
  for (std::int64_t r = 0; r < ranks; ++r) {
    const float lse = lses[r * stride];
    if (std::isnan(lse)) return lse;
    if (!std::isinf(lse)) top = std::max<double>(top, lse);
  }
  if (std::isinf(top)) return kMinusInf;
  double sum = 0;
  for (std::int64_t r = 0; r < ranks; ++r) {
    if (!std::isinf(lses[r * stride])) sum += std::exp(lses[r * stride] - top);
  }
  return static_cast<float>(top + std::log(sum));
}

float weight_of(float lse, float merged) {
  if (std::isinf(lse)) return 0.0F;
  return static_cast<float>(std::exp(static_cast<double>(lse) - static_cast<double>(merged)));
}

// The lses of all ranks, merged: [T, N * h]. gathered [N, T, N * h].
Scratch<float> gather_lse(Communicator& comm, const Partial& part, const DcpCombineParams& p) {
  const std::int64_t heads = part.ranks * part.heads();
  const CommArray send(kOp, DType::float32, {part.rows(), heads});
  const CommArray all(kOp, DType::float32, {part.ranks * part.rows(), heads});
  for (std::int64_t t = 0; t < part.rows(); ++t) {
    for (std::int64_t h = 0; h < heads; ++h) send.data<float>()[t * heads + h] = part.lse(t, h);
  }
  comm.iall_gather(send.tensor(), all.tensor(), touching(p.comm, send, all))->wait();
  Scratch<float> merged(part.rows() * heads);
  for (std::int64_t i = 0; i < merged.size(); ++i) {
    merged.data()[i] = merged_lse(all.data<float>() + i, merged.size(), part.ranks);
  }
  return merged;
}

// The sums of this rank's heads to `out`, with the sink.
template <class T>
void finish(const Partial& part, const DcpCombineParams& p, std::int64_t rank, const T* sums, const float* merged) {
  const std::int64_t heads = part.heads();
  const Scratch<float> scratch = row_per_slot(part, p.threads);
  const auto lse = p.lse.as<float, 2>();
  parallel_rows(part.rows(), part.ranks * heads * part.width(), p.threads, [&](std::int64_t t, int slot) {
    float* row = scratch.data() + slot * part.width();
    for (std::int64_t h = 0; h < heads; ++h) {
      lse(t, h) = merged[(t * part.ranks + rank) * heads + h];
      row_to_float(sums + (t * heads + h) * part.width(), row, part.width());
      if (p.attn_sink) {
        const float factor = sink_factor(p.attn_sink.as<const float, 1>()(h), lse(t, h));
        for (std::int64_t d = 0; d < part.width(); ++d) row[d] *= factor;
      }
      if (p.out.dtype == DType::bfloat16) {
        row_from_float(row, p.out.as<BFloat16, 3>().row(t, h), part.width());
      } else {
        row_from_float(row, p.out.as<float, 3>().row(t, h), part.width());
      }
    }
  });
}

// Every rank weighs its own outputs; their sum is the result.
template <class T>
void sum_weighted(Communicator& comm, const Partial& part, const DcpCombineParams& p) {
  const Scratch<float> merged = gather_lse(comm, part, p);
  const std::int64_t all_heads = part.ranks * part.heads();
  const CommArray send(kOp, dtype_of<T>::value, {part.ranks * part.rows(), part.heads(), part.width()});
  const Scratch<float> scratch = row_per_slot(part, p.threads);
  for_heads(part, p.threads, [&](std::int64_t t, std::int64_t head, std::int64_t q, std::int64_t h, int slot) {
    const float weight = weight_of(part.lse(t, head), merged.data()[t * all_heads + head]);
    T* to = send.data<T>() + ((q * part.rows() + t) * part.heads() + h) * part.width();
    store_weighted(part, t, head, weight, scratch.data() + slot * part.width(), to);
  });
  const std::int64_t mine = part.rows() * part.heads() * part.width();
  if (p.combine == DcpCombine::ar) {
    comm.iall_reduce(send.tensor(), send.tensor(), Reduce::sum, touching(p.comm, send))->wait();
    finish(part, p, comm.rank(), send.data<T>() + comm.rank() * mine, merged.data());
    return;
  }
  const CommArray sums(kOp, dtype_of<T>::value, {part.rows(), part.heads(), part.width()});
  comm.ireduce_scatter(send.tensor(), sums.tensor(), Reduce::sum, touching(p.comm, send, sums))->wait();
  finish(part, p, comm.rank(), sums.data<T>(), merged.data());
}

template <class T>
void run(Communicator& comm, const Partial& part, const DcpCombineParams& p) {
  if (p.combine == DcpCombine::a2a) {
    all_to_all<T>(comm, part, p);
  } else {
    sum_weighted<T>(comm, part, p);
  }
}

}  // namespace

DcpCombine parse_dcp_combine(std::string_view op, std::string_view text) {
  for (int i = 0; i < 3; ++i) {
    if (text == kCombines[i]) return static_cast<DcpCombine>(i);
  }
  refuse_value(op, "combine", "is \"", text, "\", needs \"ag_rs\", \"a2a\" or \"ar\"");
}

DcpPayload parse_dcp_payload(std::string_view op, std::string_view text) {
  for (int i = 0; i < 2; ++i) {
    if (text == kPayloads[i]) return static_cast<DcpPayload>(i);
  }
  refuse_value(op, "payload", "is \"", text, "\", needs \"fp32\" or \"bf16\"");
}

std::string_view name_of(DcpCombine combine) { return kCombines[static_cast<int>(combine)]; }
std::string_view name_of(DcpPayload payload) { return kPayloads[static_cast<int>(payload)]; }

void check_dcp_combine(std::string_view op, int ranks, const DcpCombineParams& p) {
  require_heads(op, "partial_out", p.partial_out, "[T, N * h, d_v]");
  const auto& s = p.partial_out.shape;
  if (s[1] % ranks != 0) {
    refuse_value(op, "partial_out", "has ", s[1], " heads, needs a multiple of the ", ranks,
                 " ranks: the heads of all of them");
  }
  require_dtype(op, "partial_lse", p.partial_lse, {DType::float32});
  require_shape(op, "partial_lse", p.partial_lse, {s[0], s[1]}, "[T, N * h]");
  require_sink(op, p.attn_sink, s[1] / ranks);
  require_outputs(op, {&p.out, &p.lse, nullptr}, s[0], s[1] / ranks, s[2],
                  {&p.partial_out, &p.partial_lse, &p.attn_sink});
}

void dcp_combine(Communicator& comm, const DcpCombineParams& p) {
  check_dcp_combine(kOp, comm.size(), p);
  const Partial part{p.partial_out, p.partial_lse.as<const float, 2>(), comm.size()};
  if (p.payload == DcpPayload::bf16) {
    run<BFloat16>(comm, part, p);
  } else {
    run<float>(comm, part, p);
  }
}

}  // namespace sparsespan
