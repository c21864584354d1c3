// Schedules that nobody would write: every one is refused with words or runs, and none reads outside its tables.

#include <gtest/gtest.h>

#include <random>

#include "pipeline/generate.h"
#include "pipeline/lower.h"
#include "pipeline/simulate.h"
#include "pipeline/validate.h"

namespace sparsespan::pipeline {
namespace {

class Random {
 public:
  explicit Random(unsigned seed) : engine_(seed) {}
  std::int64_t below(std::int64_t n) { return std::uniform_int_distribution<std::int64_t>(0, n - 1)(engine_); }

  Action leaf() {
    Action a;
    do {
      a.kind = static_cast<Kind>(1 + below(kKinds - 1));
    } while (is_container(a.kind));
    a.stage = static_cast<std::int32_t>(below(4));
    if (has_microbatch(a.kind)) a.microbatch = static_cast<std::int32_t>(below(4));
    if (a.kind == Kind::prefill || a.kind == Kind::decode) {
      a.request = static_cast<std::int32_t>(below(3));
      a.start = below(3);
      a.length = below(3);
    }
    return a;
  }
  Action cell() {
    if (below(8) > 0) return leaf();
    Action container;
    container.kind = below(2) == 0 ? Kind::overlap : Kind::mixed;
    for (std::int64_t n = below(4); n > 0; --n) container.parts.push_back(leaf());
    return container;
  }

 private:
  std::mt19937 engine_;
};

// Counts what is let through, so that a fuzz that refuses everything at once would be noticed.
bool survives(const Schedule& s) {
  bool valid = true;
  try {
    validate(s, {});
  } catch (const schedule_error&) {
    valid = false;
  }
  for (const Transport t : {Transport::overlapped, Transport::buffered, Transport::blocking}) {
    try {
      const Costs costs;
      const Simulation run = simulate(s, costs, price(s, costs), t);
      EXPECT_EQ(run.spans.busy.size(), s.ranks.size());
    } catch (const schedule_error&) {
      EXPECT_FALSE(valid) << to_csv(s, false);
    }
  }
  try {
    const Schedule lowered = add_send_recv(s, {});
    EXPECT_TRUE(valid);
    validate(lowered, {});
  } catch (const std::invalid_argument&) {
    EXPECT_TRUE(!valid || s.has_communication()) << to_csv(s, false);
  }
  return valid;
}

TEST(PipelineFuzz, RandomCells) {
  Random random(1);
  for (int i = 0; i < 4000; ++i) {
    std::vector<std::vector<Action>> ranks(static_cast<std::size_t>(1 + random.below(3)));
    for (auto& list : ranks) {
      for (std::int64_t n = random.below(8); n > 0; --n) list.push_back(random.cell());
    }
    survives(make_schedule(std::move(ranks), -1, -1, ""));
  }
}

TEST(PipelineFuzz, CellsReplacedInValidSchedules) {
  Random random(2);
  const std::vector<Schedule> seeds = {one_f_one_b(2, 3),
                                       zero_bubble_v(2, 3),
                                       dualpipe_v(2, 4),
                                       add_send_recv(one_f_one_b(3, 3), {}),
                                       add_send_recv(decode_loop(2, 2, 0, 1), {}),
                                       mixed_prefill_decode(2, {4, 4, 4}, 0, 1, 1),
                                       add_fetch_evict(interleaved(2, 2, 2), 1, {}, -1.0)};
  int valid = 0;
  for (int i = 0; i < 7000; ++i) {
    Schedule s = seeds[i % seeds.size()];
    auto& list = s.ranks[random.below(static_cast<std::int64_t>(s.ranks.size()))];
    const auto at = random.below(static_cast<std::int64_t>(list.size()));
    switch (random.below(3)) {
      case 0: list[at] = random.cell(); break;
      case 1: list.insert(list.begin() + at, random.cell()); break;
      default: std::swap(list[at], list[random.below(static_cast<std::int64_t>(list.size()))]); break;
    }
    valid += survives(s) ? 1 : 0;
  }
  EXPECT_GT(valid, 100);
  EXPECT_LT(valid, 3000);
}

}  // namespace
}  // namespace sparsespan::pipeline
