#include "parallel/dcp_gather.h"

#include "core/scratch.h"

namespace sparsespan {

namespace {

constexpr std::string_view kOp = "dcp_layout.gather_plan";
constexpr std::int64_t kLongest = std::int64_t{1} << 40;  // sums of windows stay far from 2^63

struct Ranges {
  IntView<1> lengths;
  IntView<1> starts;
  bool has_starts = false;
  std::int64_t size() const { return lengths.shape[0]; }
  std::int64_t length(std::int64_t s) const { return lengths(s); }
  std::int64_t start(std::int64_t s) const { return has_starts ? starts(s) : 0; }
};

void check_vector(std::string_view argument, const IntView<1>& view) {
  for (std::int64_t s = 0; s < view.shape[0]; ++s) {
    if (view(s) < 0 || view(s) > kLongest) {
      refuse_value(kOp, argument, "row ", s, " is ", view(s), ", needs 0 to ", kLongest);
    }
  }
}

Ranges checked(const Tensor& lengths, const Tensor& starts) {
  require_int(kOp, "lengths", lengths);
  require_shape(kOp, "lengths", lengths, {kAny}, "[R]");
  Ranges ranges{.lengths = IntView<1>(lengths), .starts = {}, .has_starts = starts.present};
  if (starts) {
    require_int(kOp, "starts", starts);
    require_shape(kOp, "starts", starts, {lengths.shape[0]}, "[R]");
    ranges.starts = IntView<1>(starts);
    check_vector("starts", ranges.starts);
  }
  check_vector("lengths", ranges.lengths);
  return ranges;
}

// The window is cut at whole rounds of N * S positions, so that it begins and ends at the same local row everywhere.
void add_windows(const DcpLayout& layout, const Ranges& ranges, DcpGatherPlan& plan) {
  const std::int64_t s = layout.interleave();
  const std::int64_t round = layout.world_size() * s;
  for (std::int64_t i = 0; i < ranges.size(); ++i) {
    const std::int64_t first = ranges.start(i) / round * s;
    const std::int64_t end = ceil_div(ranges.start(i) + ranges.length(i), round) * s;
    plan.first.push_back(first);
    plan.base.push_back(plan.send_rows);
    plan.padded.push_back(ranges.length(i) == 0 ? 0 : end - first);
    plan.send_rows += plan.padded.back();
  }
}

}  // namespace

DcpGatherPlan dcp_gather_plan(const DcpLayout& layout, const Tensor& lengths, const Tensor& starts) {
  const auto ranges = checked(lengths, starts);
  DcpGatherPlan plan;
  add_windows(layout, ranges, plan);
  for (std::int64_t i = 0; i < ranges.size(); ++i) {
    for (std::int64_t p = ranges.start(i); p < ranges.start(i) + ranges.length(i); ++p) {
      plan.source_rows.push_back(layout.owner(p) * plan.send_rows + plan.base[i] + layout.local(p) - plan.first[i]);
    }
  }
  return plan;
}

DcpSendRows dcp_send_rows(const DcpLayout& layout, const Tensor& lengths, const Tensor& starts, std::int64_t rank) {
  const auto ranges = checked(lengths, starts);
  layout.require_rank(kOp, rank);
  DcpGatherPlan plan;
  add_windows(layout, ranges, plan);
  DcpSendRows send;
  for (std::int64_t i = 0; i < ranges.size(); ++i) {
    const std::int64_t begin = layout.local_len(ranges.start(i), rank);
    const std::int64_t end = layout.local_len(ranges.start(i) + ranges.length(i), rank);
    for (std::int64_t l = plan.first[i]; l < plan.first[i] + plan.padded[i]; ++l) {
      send.request.push_back(i);
      send.local.push_back(l >= begin && l < end ? l : -1);
    }
  }
  return send;
}

}  // namespace sparsespan
