#pragma once

// What waits for what. An event is (what happened, stage, micro-batch); every action makes events true and waits for
// others. validate, the lowering passes and simulate all read their rules here.

#include <array>
#include <cstdint>
#include <vector>

#include "pipeline/schedule.h"

namespace sparsespan::pipeline {

enum class Event : std::uint8_t {
  passed,    // F, P or D done
  backed,    // B or I done: the gradient of the input exists
  weighted,  // B or W done
  sampled,   // S done
  sent_f,    // the message has left; the same order as the kinds
  sent_b,
  sent_x,
  sent_t,
  received_f,
  received_b,
  received_x,
  received_t,
  posted_f,  // the receiver stands at its receive (rendezvous)
  posted_b,
  posted_x,
  posted_t,
};
inline constexpr int kEvents = 16;

// Channel of a message: 0 hidden states forward, 1 gradients backward, 2 top-k indices forward, 3 tokens.
constexpr int channel_of(Kind k) { return (static_cast<int>(k) - static_cast<int>(Kind::send_f)) / 2; }
constexpr Event sent(int channel) { return static_cast<Event>(static_cast<int>(Event::sent_f) + channel); }
constexpr Event received(int channel) { return static_cast<Event>(static_cast<int>(Event::received_f) + channel); }
constexpr Event posted(int channel) { return static_cast<Event>(static_cast<int>(Event::posted_f) + channel); }

struct Need {
  Event event;
  std::int32_t stage;
  std::int32_t microbatch;
};

// The needs of one leaf: never more than three.
struct Needs {
  std::array<Need, 3> list;
  int count = 0;
  void add(Event e, std::int64_t stage, std::int64_t microbatch) {
    list[count++] = {e, static_cast<std::int32_t>(stage), static_cast<std::int32_t>(microbatch)};
  }
  const Need* begin() const { return list.data(); }
  const Need* end() const { return list.data() + count; }
};

class Index {
 public:
  // The schedule has passed check_shape (validate.h): stages and micro-batches are in range, their product is small.
  explicit Index(const Schedule& schedule);

  std::int64_t stages() const { return stages_; }
  std::int64_t microbatches() const { return microbatches_; }
  bool communicates() const { return communicates_; }
  std::int32_t rank_of(std::int64_t stage) const { return rank_of_[stage]; }
  std::int64_t peer_stage(const Action& message) const;  // the stage at the other end of a send or receive
  // The micro-batch whose sampled token decode micro-batch m feeds on; -1: none in this schedule.
  std::int32_t token_of(std::int64_t m) const { return token_of_.empty() ? -1 : token_of_[m]; }
  bool carries_indices(std::int64_t stage, std::int64_t m) const {
    return !indices_.empty() && indices_[stage * microbatches_ + m];
  }

  std::int64_t slots() const { return slots_; }
  std::int64_t slot(Event e, std::int64_t stage, std::int64_t m) const {
    return base_[static_cast<std::size_t>(e)] + stage * microbatches_ + m;
  }
  std::int64_t slot(const Need& n) const { return slot(n.event, n.stage, n.microbatch); }
  Needs needs(const Action& leaf) const;
  // The events that come true when `leaf` ends.
  Needs makes(const Action& leaf) const;

 private:
  void pass_needs(const Action& leaf, Needs& needs) const;

  std::int64_t stages_;
  std::int64_t microbatches_;
  bool communicates_;
  std::vector<std::int32_t> rank_of_;
  std::vector<std::int32_t> token_of_;
  std::vector<bool> indices_;  // [stage, microbatch]: a RECV_X stands in the schedule
  std::array<std::int64_t, kEvents> base_{};
  std::int64_t slots_ = 0;
};

}  // namespace sparsespan::pipeline
