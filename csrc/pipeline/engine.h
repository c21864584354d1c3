#pragma once

// Runs a schedule on paper, rank by rank, as far as each gets. Every action is looked at once and every wait is woken
// once, so the time is linear in the actions.

#include <cstdint>
#include <string>
#include <vector>

#include "pipeline/index.h"

namespace sparsespan::pipeline {

// How messages behave.
//   overlapped  sends and receives have lanes of their own; only the action that needs the data waits
//   buffered    one lane: a send hands over and goes on, a receive stands still until the message is there
//   blocking    one lane: a send stands still until the receiver stands at its receive (rendezvous)
enum class Transport : std::uint8_t { overlapped, buffered, blocking };
Transport parse_transport(std::string_view op, std::string_view text);
std::string_view name_of(Transport transport);

struct Link {
  double latency = 0.0;
  double bandwidth = 0.0;  // bytes per unit of time; 0: infinite
};

// Durations of a schedule's cells, [rank][step]; bytes of the messages. Empty: all zero (is it able to end at all?).
struct Durations {
  std::vector<std::vector<double>> cells;
  std::vector<std::vector<double>> bytes;
};

struct Spans {
  std::vector<std::vector<double>> start;  // [rank][step]
  std::vector<std::vector<double>> end;
  std::vector<double> busy;  // compute lane
  double makespan = 0.0;
  // When not empty, the schedule stands still: which ranks wait for one another, in words, and where.
  std::string deadlock;
  std::int64_t rank = -1;
  std::int64_t step = -1;
};

Spans run(const Schedule& schedule, const Index& index, Transport transport, const Durations& durations, Link link);

}  // namespace sparsespan::pipeline
