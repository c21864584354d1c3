#pragma once

// A schedule as data: for each rank the ordered list of its actions.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "pipeline/action.h"

namespace sparsespan::pipeline {

// What must happen to a micro-batch: forward and backward, forward only, or serving (P, D and S).
enum class Mode : std::uint8_t { train, forward, serve };
std::string_view name_of(Mode mode);
Mode parse_mode(std::string_view op, std::string_view text);

struct Schedule {
  std::vector<std::vector<Action>> ranks;
  std::int64_t stages = 0;
  std::int64_t microbatches = 0;
  Mode mode = Mode::train;

  std::int64_t size() const;  // actions, idle cells apart; a container counts once
  bool has(Kind kind) const;
  bool has_communication() const;
  bool operator==(const Schedule&) const = default;
};

// stages and microbatches < 0 and mode "" are read off the actions.
Schedule make_schedule(std::vector<std::vector<Action>> ranks, std::int64_t stages, std::int64_t microbatches,
                       std::string_view mode);

// CSV as torch.distributed.pipelining writes it: one row for each rank, an empty field is an idle cell.
std::vector<std::vector<Action>> parse_csv(std::string_view text);
std::string to_csv(const Schedule& schedule, bool torch);

// The rank x step grid. With rank >= 0 the cell [rank][step] is marked >like this< and, of a large schedule, only the
// neighbourhood is printed.
std::string grid(const Schedule& schedule, std::int64_t rank = -1, std::int64_t step = -1);

}  // namespace sparsespan::pipeline
