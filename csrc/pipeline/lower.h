#pragma once

// Passes from compute-only schedules to ones that can be carried out.

#include <cstdint>
#include <vector>

#include "pipeline/schedule.h"
#include "pipeline/validate.h"

namespace sparsespan::pipeline {

// Adds the messages between stages that live on different ranks. A send follows its action at once, and the receive is
// put into the peer's list at the same moment, so that sends and receives pair up in one order on all ranks: such a
// schedule ends even when sends block. rules.shared_indexer adds SEND_X / RECV_X where a stage starts with a layer that
// shares the indexer of the layer below.
Schedule add_send_recv(const Schedule& schedule, const Rules& rules);

// Adds FETCH before a stage's first use and EVICT when its place is needed, prefetching the stages that come next in
// the list. At most max_active stages, and stage_bytes (when given) within `budget`, are held at once.
Schedule add_fetch_evict(const Schedule& schedule, std::int64_t max_active, const std::vector<double>& stage_bytes,
                         double budget);

// I directly followed by W of the same stage and micro-batch becomes B.
Schedule merge_backward(const Schedule& schedule);

}  // namespace sparsespan::pipeline
