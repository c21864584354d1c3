#include <algorithm>
#include <map>

#include "core/check.h"
#include "pipeline/validate.h"

namespace sparsespan::pipeline {

namespace {

class Serving {
 public:
  Serving(const Schedule& s, const Index& index) : s_(s), index_(index) {}

  void check() {
    first_.assign(static_cast<std::size_t>(s_.microbatches), Cell{});
    for (std::int64_t stage = 0; stage < s_.stages; ++stage) walk(stage);
    samples();
  }

 private:
  struct Cell {
    std::int64_t rank = -1;
    std::int64_t step = -1;
    const Action* action = nullptr;
  };
  // What a request (or slot) has been through on stage 0.
  struct Progress {
    std::int64_t end = -1;   // positions of its prefill so far
    std::int64_t next = -1;  // the next decode step
    std::int32_t last = -1;  // micro-batch of the last chunk
  };

  template <class... Words>
  [[noreturn]] void refuse(const Cell& c, const Words&... words) const {
    refuse_cell(s_, c.rank, c.step, detail::join(words...));
  }

  // All passes of one stage in their order: identity and order as on stage 0.
  void walk(std::int64_t stage) {
    const std::int64_t r = index_.rank_of(stage);
    std::size_t n = 0;
    for (std::size_t t = 0; t < s_.ranks[r].size(); ++t) {
      for_each_leaf(s_.ranks[r][t], [&](const Action& a) {
        if (a.stage != stage || !is_pass(a.kind)) return;
        const Cell here{r, static_cast<std::int64_t>(t), &a};
        if (stage == 0) {
          first_[a.microbatch] = here;
          order_.push_back(a.microbatch);
          progress(here);
          return;
        }
        const Action& origin = *first_[a.microbatch].action;
        if (a.kind != origin.kind || a.request != origin.request || a.start != origin.start ||
            a.length != origin.length) {
          refuse(here, "micro-batch ", a.microbatch, " is ", to_text(origin), " on stage 0: all stages see one batch");
        }
        if (order_[n] != a.microbatch) {
          refuse(here, "stage ", stage, " runs micro-batch ", a.microbatch, " where stage 0 runs micro-batch ",
                 order_[n], ": all stages see the batches in one order");
        }
        ++n;
      });
    }
  }

  void progress(const Cell& c) {
    const Action& a = *c.action;
    Progress& p = requests_[a.request];
    if (a.length < 1) refuse(c, "holds ", a.length, " tokens, needs at least 1");
    if (a.kind == Kind::prefill) {
      if (p.next >= 0) refuse(c, "request ", a.request, " is prefilled again after it has been decoded");
      if (p.end >= 0 && a.start != p.end) {
        refuse(c, "the chunk of request ", a.request, " starts at ", a.start, ", but the chunk before it ends at ",
               p.end);
      }
      p.end = a.start + a.length;
      p.last = a.microbatch;
    } else {
      if (p.next >= 0 && a.start != p.next) {
        refuse(c, "slot ", a.request, " runs step ", a.start, ", but its next step is ", p.next);
      }
      p.next = a.start + 1;
    }
  }

  void samples() const {
    std::vector<Cell> sampled(static_cast<std::size_t>(s_.microbatches), Cell{});
    const std::int64_t r = index_.rank_of(s_.stages - 1);
    for (std::size_t t = 0; t < s_.ranks[r].size(); ++t) {
      const Action& a = s_.ranks[r][t];
      if (a.kind == Kind::sample) sampled[a.microbatch] = {r, static_cast<std::int64_t>(t), &a};
    }
    for (std::int64_t m = 0; m < s_.microbatches; ++m) {
      const Action& a = *first_[m].action;
      const bool last = a.kind == Kind::decode || requests_.at(a.request).last == m;
      if (!last && sampled[m].action != nullptr) {
        refuse(sampled[m], "waits for a token of ", to_text(a), ", which is not the last chunk of request ", a.request,
               ": it has none to give");
      }
      if (last && sampled[m].action == nullptr) {
        refuse_cell(s_, r, static_cast<std::int64_t>(s_.ranks[r].size()),
                    detail::join("stage ", s_.stages - 1, " never samples the token of micro-batch ", m, " (",
                                 to_text(a), ")"));
      }
    }
  }

  const Schedule& s_;
  const Index& index_;
  std::vector<Cell> first_;
  std::vector<std::int32_t> order_;
  std::map<std::int32_t, Progress> requests_;
};

}  // namespace

void check_serving(const Schedule& s, const Index& index) { Serving(s, index).check(); }

}  // namespace sparsespan::pipeline
