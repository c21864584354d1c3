#pragma once

// Rebuild a range of every request from the shards: what each rank sends, where each position lands.

#include <cstdint>
#include <vector>

#include "core/tensor.h"
#include "parallel/dcp_layout.h"

namespace sparsespan {

// Every rank sends the same number of rows, request by request; a rank-major all-gather puts rank r's rows at
// r * send_rows. Request s takes padded[s] rows from base[s]: the local rows first[s] .. first[s] + padded[s] - 1,
// of which left rows come before the range and right rows after it on some ranks.
struct DcpGatherPlan {
  std::int64_t send_rows = 0;
  std::vector<std::int64_t> padded;       // [R]
  std::vector<std::int64_t> base;         // [R] exclusive prefix sum of padded
  std::vector<std::int64_t> first;        // [R] first local row of the aligned window
  std::vector<std::int64_t> source_rows;  // [sum of lengths] gathered row of each position, request by request
};

// `lengths` [R], `starts` [R] or not given (0): positions starts[s] .. starts[s] + lengths[s] - 1.
DcpGatherPlan dcp_gather_plan(const DcpLayout& layout, const Tensor& lengths, const Tensor& starts);

struct DcpSendRows {
  std::vector<std::int64_t> request;  // [send_rows]
  std::vector<std::int64_t> local;    // [send_rows] local row, -1 = padding
};
DcpSendRows dcp_send_rows(const DcpLayout& layout, const Tensor& lengths, const Tensor& starts, std::int64_t rank);

}  // namespace sparsespan
