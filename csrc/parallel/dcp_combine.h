#pragma once

// The last step of DCP decode: every rank has attended all heads to its own keys; now each head's partial results meet
// on the rank that goes on with it.

#include <cstdint>
#include <string_view>

#include "comm/communicator.h"
#include "core/tensor.h"

namespace sparsespan {

enum class DcpCombine : std::uint8_t {
  ag_rs,  // all-gather of the lse, reduce-scatter of the weighted outputs
  a2a,    // one all-to-all of out | lse, merged in the tree of merge_states
  ar,     // all-gather of the lse, all-reduce of the weighted outputs
};
enum class DcpPayload : std::uint8_t { fp32, bf16 };
DcpCombine parse_dcp_combine(std::string_view op, std::string_view text);
DcpPayload parse_dcp_payload(std::string_view op, std::string_view text);
std::string_view name_of(DcpCombine combine);
std::string_view name_of(DcpPayload payload);

struct DcpCombineParams {
  Tensor partial_out;  // [T, N * h, d_v] float32 or bfloat16: all heads in order of rank, over this rank's keys alone
  Tensor partial_lse;  // [T, N * h] float32, natural log, without the sink; +inf and -inf mean empty
  Tensor attn_sink;    // [h] float32 of this rank's heads, or not given: enters once, after the merge
  DcpCombine combine = DcpCombine::ag_rs;
  DcpPayload payload = DcpPayload::fp32;  // element of the partial outputs on their way
  Tensor out;                             // [T, h, d_v] float32 or bfloat16
  Tensor lse;                             // [T, h] float32
  int threads = 0;
  CommOptions comm;  // `plan` is what the ranks compare before data moves
};

// Attention of this rank's heads (block `rank` of the N * h) over the union of all ranks' keys.
void dcp_combine(Communicator& comm, const DcpCombineParams& params);
// Its checks, for callers that move data before.
void check_dcp_combine(std::string_view op, int ranks, const DcpCombineParams& params);

}  // namespace sparsespan
