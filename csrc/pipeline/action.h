#pragma once

// One cell of a pipeline schedule. The text form is that of torch.distributed.pipelining, widened for inference:
//   2F0              forward of stage 2, micro-batch 0; B full backward, I its input half, W its weight half
//   2SEND_F0 3RECV_F0  hidden states to the next stage; _B gradients to the previous stage; _X top-k indices of a
//   shared
//                    indexer to the next stage; _T the sampled token from the last stage to the first
//   2FETCH 2EVICT    stage weights come and go (torch: UNSHARD, RESHARD); 2REDUCE_GRAD
//   1P5@0:4096+2048  prefill on stage 1 as micro-batch 5: request 0, positions 4096 .. 6143 (logical)
//   1D6@2:17+8       decode on stage 1 as micro-batch 6: slot 2, step 17, 8 tokens
//   3S6              sample after micro-batch 6 left the last stage
//   (0F7;7B3)OVERLAP_F_B   parts that run together; (1P5@0:0+64;1D6@2:0+8)MIXED parts of one forward

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace sparsespan::pipeline {

// What validate and the parser throw; Python sees ScheduleError, a ValueError.
struct schedule_error : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

enum class Kind : std::uint8_t {
  idle,
  forward,
  backward,
  backward_input,
  backward_weight,
  send_f,
  recv_f,
  send_b,
  recv_b,
  send_x,
  recv_x,
  send_t,
  recv_t,
  fetch,
  evict,
  reduce_grad,
  prefill,
  decode,
  sample,
  overlap,
  mixed,
};
inline constexpr int kKinds = 21;

// "F", "SEND_F", ...; `torch` gives UNSHARD and RESHARD for FETCH and EVICT.
std::string_view name_of(Kind kind, bool torch = false);

constexpr bool is_send(Kind k) {
  return k == Kind::send_f || k == Kind::send_b || k == Kind::send_x || k == Kind::send_t;
}
constexpr bool is_recv(Kind k) {
  return k == Kind::recv_f || k == Kind::recv_b || k == Kind::recv_x || k == Kind::recv_t;
}
constexpr bool is_container(Kind k) { return k == Kind::overlap || k == Kind::mixed; }
// F, P and D: a micro-batch passes through a stage.
constexpr bool is_pass(Kind k) { return k == Kind::forward || k == Kind::prefill || k == Kind::decode; }
constexpr bool is_backward(Kind k) { return k == Kind::backward || k == Kind::backward_input; }
constexpr bool is_serving(Kind k) {
  return k == Kind::prefill || k == Kind::decode || k == Kind::sample || k == Kind::mixed;
}
// Occupies the compute lane of its rank.
constexpr bool is_compute(Kind k) {
  return is_pass(k) || is_backward(k) || k == Kind::backward_weight || k == Kind::reduce_grad || k == Kind::sample ||
         is_container(k);
}
constexpr bool has_microbatch(Kind k) {
  return k != Kind::idle && k != Kind::fetch && k != Kind::evict && k != Kind::reduce_grad && !is_container(k);
}

struct Action {
  Kind kind = Kind::idle;
  std::int32_t stage = -1;
  std::int32_t microbatch = -1;
  std::int32_t request = -1;  // P: request, D: slot
  std::int64_t start = 0;     // P: first logical position of the chunk, D: step
  std::int64_t length = 0;    // P and D: tokens
  std::vector<Action> parts;  // of a container

  bool operator==(const Action&) const = default;
};

std::string to_text(const Action& action, bool torch = false);
// Throws schedule_error with `line` and the column of the offending character, both counted from 1.
Action parse_action(std::string_view text, std::int64_t line, std::int64_t column);

// Calls f for the action itself, or for each part of a container.
template <class F>
void for_each_leaf(const Action& action, F&& f) {
  if (is_container(action.kind)) {
    for (const Action& part : action.parts) f(part);
  } else if (action.kind != Kind::idle) {
    f(action);
  }
}

}  // namespace sparsespan::pipeline
