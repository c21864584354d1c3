#include "parallel/split_plan.h"

#include <algorithm>

#include "core/check.h"
#include "core/scratch.h"

namespace sparsespan {

namespace {

constexpr std::string_view kOp = "split_plan";
constexpr std::int64_t kMaxRanks = 1 << 20;
constexpr std::int64_t kMaxRequests = 1 << 30;
constexpr std::int64_t kMaxPrefix = std::int64_t{1} << 40;
constexpr CpScheme kLastScheme = CpScheme::thd_even;
constexpr CpFlavor kLastFlavor = CpFlavor::vllm_ascend;

template <class Enum>
Enum parse(std::string_view argument, const std::string& text, Enum last) {
  std::string names;
  for (int i = 0; i <= static_cast<int>(last); ++i) {
    const auto name = name_of(static_cast<Enum>(i));
    if (name == text) return static_cast<Enum>(i);
    names += (i == 0 ? "" : ", ") + std::string(name);
  }
  refuse_value(kOp, argument, "is \"", text, "\", needs one of ", names);
}

Ints read_cu(const Tensor& t) {
  require_int(kOp, "cu_seqlens", t);
  require_shape(kOp, "cu_seqlens", t, {kAny}, "[B + 1]");
  if (t.shape[0] < 1 || t.shape[0] > kMaxRequests) {
    refuse_value(kOp, "cu_seqlens", "has ", t.shape[0], " entries, needs B + 1: [0] for an empty batch");
  }
  const IntView<1> view(t);
  Ints cu(t.shape[0]);
  for (std::int64_t s = 0; s < t.shape[0]; ++s) {
    cu[s] = view(s);
    if (s == 0 ? cu[0] != 0 : cu[s] < cu[s - 1]) {
      refuse_value(kOp, "cu_seqlens", "has ", cu[s], " at entry ", s, s == 0 ? ", needs 0" : ", needs at least ",
                   s == 0 ? "" : std::to_string(cu[s - 1]), " (running sums of the requests' new rows)");
    }
  }
  if (cu.back() > kMaxPlanRows) {
    refuse_value(kOp, "cu_seqlens", "counts ", cu.back(), " rows, needs at most ", kMaxPlanRows);
  }
  return cu;
}

Ints read_prefix(const Tensor& t, std::int64_t requests) {
  if (!t) return Ints(requests, 0);
  require_int(kOp, "prefix_lens", t);
  require_shape(kOp, "prefix_lens", t, {requests}, "[B]");
  const IntView<1> view(t);
  Ints prefix(requests);
  for (std::int64_t s = 0; s < requests; ++s) {
    prefix[s] = view(s);
    if (prefix[s] < 0 || prefix[s] > kMaxPrefix) {
      refuse_value(kOp, "prefix_lens", "has ", prefix[s], " for request ", s, ", needs 0 to ", kMaxPrefix,
                   ": keys that were cached before the request's first row");
    }
  }
  return prefix;
}

std::vector<std::uint8_t> read_kinds(const Tensor& t, std::int64_t rows, std::int64_t requests) {
  if (!t) return {};
  require_int(kOp, "row_kind", t);
  require_shape(kOp, "row_kind", t, {kAny}, "[T]");
  if (t.shape[0] != rows) {
    refuse_value(
        kOp, "row_kind", "has ", t.shape[0], " entries, needs one for each of the ", rows, " rows",
        t.shape[0] == requests ? "; np.repeat(kind, np.diff(cu_seqlens)) turns kinds of requests into those" : "");
  }
  const IntView<1> view(t);
  std::vector<std::uint8_t> kind(rows);
  for (std::int64_t i = 0; i < rows; ++i) {
    if (view(i) < 0 || view(i) > 2) {
      refuse_value(kOp, "row_kind", "has ", view(i), " at row ", i, ", needs 0 (prefill), 1 (decode) or 2 (pad)");
    }
    kind[i] = static_cast<std::uint8_t>(view(i));
  }
  return kind;
}

// Real rows first, padding behind them, and no request that is half prefill and half decode.
void read_request_kinds(CpBatch& b) {
  const std::int64_t requests = b.requests();
  b.real.resize(requests);
  b.whole.assign(requests, 0);
  for (std::int64_t s = 0; s < requests; ++s) {
    b.real[s] = b.length(s);
    if (b.kind.empty() || b.length(s) == 0) continue;
    const auto first = b.kind.begin() + b.cu[s];
    const auto end = b.kind.begin() + b.cu[s + 1];
    const auto pads = std::find(first, end, static_cast<std::uint8_t>(RowKind::pad));
    b.real[s] = pads - first;
    for (auto k = first; k < end; ++k) {
      if (*k == (k < pads ? *first : static_cast<std::uint8_t>(RowKind::pad))) continue;
      refuse_value(kOp, "row_kind", "changes to ", static_cast<int>(*k), " at row ", k - b.kind.begin(),
                   " inside request ", s, ", needs all prefill or all decode, with pad rows only behind them");
    }
    // DSA-CP shards the flat token stream and does not look at what a row is.
    const bool sharded = b.flavor == CpFlavor::vllm_ascend && b.scheme == CpScheme::contiguous_flat;
    b.whole[s] = !sharded && *first == static_cast<std::uint8_t>(RowKind::decode) ? 1 : 0;
  }
}

void lay_out_keys(CpBatch& b) {
  b.k_start.assign(b.requests() + 1, 0);
  for (std::int64_t s = 0; s < b.requests(); ++s) {
    if (__builtin_add_overflow(b.k_start[s], b.prefix[s] + b.length(s), &b.k_start[s + 1])) {
      refuse_value(kOp, "prefix_lens", "adds up to more than 64 bits at request ", s);
    }
  }
}

void read_padding(CpBatch& b, const std::optional<std::int64_t>& pad_to) {
  b.split_len.resize(b.requests());
  for (std::int64_t s = 0; s < b.requests(); ++s) b.split_len[s] = b.length(s);
  if (!pad_to) return;
  if (*pad_to < b.rows() || *pad_to > kMaxPlanRows) {
    refuse_value(kOp, "pad_to", "is ", *pad_to, ", needs ", b.rows(), " (the rows of the batch) to ", kMaxPlanRows);
  }
  b.pad_to = *pad_to;
  // SGLang counts the padding of the token stream as rows of the last request before it cuts.
  const bool cut = b.scheme == CpScheme::zigzag || b.scheme == CpScheme::contiguous;
  if (b.flavor == CpFlavor::sglang && cut && b.requests() > 0) b.split_len.back() += *pad_to - b.rows();
}

// Decode rows stand on every rank and zigzag_padded fills up: both grow with the ranks, so they are counted first.
void refuse_oversize(const CpBatch& b) {
  const std::int64_t unit = 2 * b.world_size;
  std::int64_t rows = 0;
  for (std::int64_t s = 0; s < b.requests(); ++s) {
    const std::int64_t length = b.length(s);
    if (b.whole[s] != 0) {
      rows += length * b.world_size;
    } else {
      rows += b.scheme == CpScheme::zigzag_padded ? ceil_div(length, unit) * unit : length;
    }
    if (rows > kMaxPlanRows) {
      refuse_value(kOp, "world_size", "of ", b.world_size, " gives more than ", kMaxPlanRows,
                   " local rows in all, reached at request ", s);
    }
  }
}

}  // namespace

std::shared_ptr<const CpPlan> split_plan(const SplitPlanParams& p) {
  CpBatch b;
  b.scheme = parse("scheme", p.scheme, kLastScheme);
  b.flavor = parse("flavor", p.flavor, kLastFlavor);
  if (p.world_size < 1 || p.world_size > kMaxRanks) {
    refuse_value(kOp, "world_size", "is ", p.world_size, ", needs 1 to ", kMaxRanks);
  }
  b.world_size = p.world_size;
  b.cu = read_cu(p.cu_seqlens);
  b.prefix = read_prefix(p.prefix_lens, static_cast<std::int64_t>(b.cu.size()) - 1);
  b.kind = read_kinds(p.row_kind, b.rows(), b.requests());
  read_request_kinds(b);
  lay_out_keys(b);
  read_padding(b, p.pad_to);
  refuse_what_the_engine_refuses(b);
  refuse_oversize(b);
  return std::make_shared<const CpPlan>(std::move(b));
}

}  // namespace sparsespan
