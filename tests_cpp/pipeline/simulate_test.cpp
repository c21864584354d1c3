#include "pipeline/simulate.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "pipeline/generate.h"
#include "pipeline/lower.h"
#include "pipeline/sm_waves.h"
#include "pipeline/validate.h"

namespace sparsespan::pipeline {
namespace {

Costs unit_costs() {
  Costs costs;
  costs.fixed[static_cast<int>(Kind::forward)] = 1.0;
  costs.fixed[static_cast<int>(Kind::backward)] = 2.0;
  costs.fixed[static_cast<int>(Kind::backward_input)] = 1.0;
  costs.fixed[static_cast<int>(Kind::backward_weight)] = 1.0;
  costs.fixed[static_cast<int>(Kind::prefill)] = 1.0;
  costs.fixed[static_cast<int>(Kind::decode)] = 1.0;
  return costs;
}

Simulation run_unit(const Schedule& s, Transport transport = Transport::overlapped) {
  const Costs costs = unit_costs();
  return simulate(s, costs, price(s, costs), transport);
}

TEST(PipelineSimulate, PublishedMakespans) {
  EXPECT_EQ(run_unit(gpipe(4, 8)).spans.makespan, 33.0);
  EXPECT_EQ(run_unit(one_f_one_b(4, 8)).spans.makespan, 33.0);
  EXPECT_EQ(run_unit(one_f_one_b(4, 16)).spans.makespan, 57.0);
  EXPECT_EQ(run_unit(one_f_one_b(8, 32)).spans.makespan, 117.0);
  EXPECT_EQ(run_unit(one_f_one_b(4, 8)).peak_activations, (std::vector<std::int64_t>{4, 3, 2, 1}));
  EXPECT_EQ(run_unit(gpipe(4, 8)).peak_activations, (std::vector<std::int64_t>{8, 8, 8, 8}));
  const Simulation dual = run_unit(dualpipe_v(4, 10));
  EXPECT_EQ(dual.spans.makespan, 66.0);
  EXPECT_EQ(dual.spans.busy, std::vector<double>(4, 60.0));
  EXPECT_EQ(dual.bubble, std::vector<double>(4, 6.0));
  EXPECT_EQ(dual.peak_activations, std::vector<std::int64_t>(4, 9));
}

TEST(PipelineSimulate, EveryGeneratorRunsUnderEveryTransport) {
  for (std::int64_t ranks : {1, 2, 5}) {
    for (std::int64_t m : {10, 20}) {
      for (const Schedule& s : {gpipe(ranks, m), one_f_one_b(ranks, m), interleaved(ranks, m, 2),
                                zero_bubble_h1(ranks, m, 1), zero_bubble_v(ranks, m), dualpipe_v(ranks, m)}) {
        const Schedule with = add_send_recv(s, {});
        validate(with, {});
        const double alone = run_unit(s).spans.makespan;
        // Messages cost nothing here: lanes of their own change no time; standing still can only delay.
        EXPECT_EQ(run_unit(with).spans.makespan, alone);
        EXPECT_GE(run_unit(with, Transport::buffered).spans.makespan, alone);
        EXPECT_GE(run_unit(with, Transport::blocking).spans.makespan,
                  run_unit(with, Transport::buffered).spans.makespan);
      }
    }
  }
}

TEST(PipelineSimulate, MessagesTakeLatencyAndBandwidth) {
  Costs costs = unit_costs();
  costs.link = {.latency = 0.5, .bandwidth = 4.0};
  costs.message_bytes = 1.0;
  const Schedule s = chunked_prefill(2, {{8}}, {});
  // 1 + 8 bytes / 4 + 0.5 + 1: the same whether the message stands in the list or on the edge.
  EXPECT_DOUBLE_EQ(simulate(s, costs, price(s, costs), Transport::overlapped).spans.makespan, 4.5);
  const Schedule with = add_send_recv(s, {});
  for (const Transport t : {Transport::overlapped, Transport::buffered, Transport::blocking}) {
    EXPECT_DOUBLE_EQ(simulate(with, costs, price(with, costs), t).spans.makespan, 4.5);
  }
}

TEST(PipelineSimulate, RefusesBadCosts) {
  const Schedule s = gpipe(2, 2);
  Costs costs = unit_costs();
  costs.fixed[static_cast<int>(Kind::forward)] = -1.0;
  EXPECT_THROW(price(s, costs), std::invalid_argument);
  costs = unit_costs();
  costs.link.latency = std::nan("");
  EXPECT_THROW(price(s, costs), std::invalid_argument);
  costs = unit_costs();
  costs.stage_weights = {1.0};
  EXPECT_THROW(price(s, costs), std::invalid_argument);
  costs = unit_costs();
  costs.custom[static_cast<int>(Kind::forward)] = [](const Action& a) { return a.microbatch == 1 ? -2.0 : 1.0; };
  EXPECT_THROW(price(s, costs), std::invalid_argument);
}

TEST(PipelineValidate, DeadlockIsToldForBlockingSendsOnly) {
  // Both ranks send before they receive: fine as long as sends do not wait.
  const Schedule s = make_schedule(parse_csv("0F0,0SEND_F0,0F1,0SEND_F1,0RECV_B0,0B0,0RECV_B1,0B1\n"
                                             "1RECV_F0,1F0,1B0,1SEND_B0,1RECV_F1,1F1,1B1,1SEND_B1\n"),
                                   -1, -1, "");
  validate(s, {.sends = Transport::buffered});
  try {
    validate(s, {});
    FAIL() << "blocking sends must deadlock here";
  } catch (const schedule_error& e) {
    const std::string text = e.what();
    EXPECT_NE(text.find("deadlock with blocking sends"), std::string::npos) << text;
    EXPECT_NE(text.find("a cycle of 2 ranks"), std::string::npos) << text;
    EXPECT_NE(text.find("rank 0 stands at step 3 (0SEND_F1) and waits for 1RECV_F1 on rank 1"), std::string::npos)
        << text;
    EXPECT_NE(text.find(">0SEND_F1<"), std::string::npos) << text;
  }
}

TEST(PipelineChunking, LawOfTheFlowShop) {
  const std::vector<double> t = {5.0, 1.0, 7.0, 2.0};
  EXPECT_DOUBLE_EQ(flow_makespan(t, {1.0, 1.0, 1.0}), 15.0 + 2 * 7.0);
  EXPECT_EQ(balance_layers(61, 4, {1.0, 2.0, 3.0}, {}), (std::vector<std::int64_t>{15, 15, 15, 16}));
}

TEST(PipelineSmWaves, EqualTiles) {
  for (std::int64_t n : {256, 384, 512, 1024}) {
    const auto w = sm_waves({.tiles = std::vector<double>(n, 1.0), .sms = 78, .reserved = 1});
    const double f = static_cast<double>(n / 78);
    EXPECT_DOUBLE_EQ(w.time / w.alone, 2 * f / (f + 1));
  }
  const auto even = sm_waves({.tiles = std::vector<double>(780, 1.0), .sms = 78, .reserved = 1});
  EXPECT_DOUBLE_EQ(even.time / even.alone, 2.0);
}

}  // namespace
}  // namespace sparsespan::pipeline
