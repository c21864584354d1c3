#include "pipeline/schedule.h"

#include <algorithm>
#include <array>

#include "core/check.h"

namespace sparsespan::pipeline {

namespace {

constexpr std::array<std::string_view, 3> kModes = {"train", "forward", "serve"};

Mode infer_mode(const Schedule& s) {
  bool trains = false;
  bool serves = false;
  for (const auto& list : s.ranks) {
    for (const Action& action : list) {
      for_each_leaf(action, [&](const Action& leaf) {
        serves = serves || is_serving(leaf.kind);
        trains = trains || is_backward(leaf.kind) || leaf.kind == Kind::backward_weight;
      });
    }
  }
  return serves ? Mode::serve : trains ? Mode::train : Mode::forward;
}

// Cuts one line into fields; fields hold no commas, so quotes only wrap (csv writes a lone empty field as "").
std::vector<Action> parse_row(std::string_view row, std::int64_t line) {
  std::vector<Action> actions;
  std::size_t at = 0;
  while (true) {
    const std::size_t comma = std::min(row.find(',', at), row.size());
    std::size_t first = at;
    std::size_t last = comma;
    const auto blank = [&](std::size_t i) { return row[i] == ' ' || row[i] == '\t'; };
    while (first < last && blank(first)) ++first;
    while (last > first && blank(last - 1)) --last;
    if (last - first >= 2 && row[first] == '"' && row[last - 1] == '"') ++first, --last;
    actions.push_back(first == last
                          ? Action{}
                          : parse_action(row.substr(first, last - first), line, static_cast<std::int64_t>(first) + 1));
    if (comma == row.size()) return actions;
    at = comma + 1;
  }
}

}  // namespace

std::string_view name_of(Mode mode) { return kModes[static_cast<std::size_t>(mode)]; }

Mode parse_mode(std::string_view op, std::string_view text) {
  const auto found = std::find(kModes.begin(), kModes.end(), text);
  if (found == kModes.end()) refuse_value(op, "mode", "is '", text, "', needs 'train', 'forward' or 'serve'");
  return static_cast<Mode>(found - kModes.begin());
}

std::int64_t Schedule::size() const {
  std::int64_t n = 0;
  for (const auto& list : ranks) {
    n += std::count_if(list.begin(), list.end(), [](const Action& a) { return a.kind != Kind::idle; });
  }
  return n;
}

bool Schedule::has(Kind kind) const {
  bool found = false;
  for (const auto& list : ranks) {
    for (const Action& action : list) for_each_leaf(action, [&](const Action& a) { found = found || a.kind == kind; });
  }
  return found;
}

bool Schedule::has_communication() const {
  for (const auto& list : ranks) {
    for (const Action& a : list) {
      if (is_send(a.kind) || is_recv(a.kind)) return true;
    }
  }
  return false;
}

Schedule make_schedule(std::vector<std::vector<Action>> ranks, std::int64_t stages, std::int64_t microbatches,
                       std::string_view mode) {
  Schedule s;
  s.ranks = std::move(ranks);
  std::int64_t top_stage = -1;
  std::int64_t top_microbatch = -1;
  for (const auto& list : s.ranks) {
    for (const Action& action : list) {
      for_each_leaf(action, [&](const Action& leaf) {
        top_stage = std::max<std::int64_t>(top_stage, leaf.stage);
        top_microbatch = std::max<std::int64_t>(top_microbatch, leaf.microbatch);
      });
    }
  }
  s.stages = stages < 0 ? top_stage + 1 : stages;
  s.microbatches = microbatches < 0 ? top_microbatch + 1 : microbatches;
  s.mode = mode.empty() ? infer_mode(s) : parse_mode("Schedule", mode);
  return s;
}

std::vector<std::vector<Action>> parse_csv(std::string_view text) {
  std::vector<std::vector<Action>> ranks;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    std::string_view row = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (!row.empty() && row.back() == '\r') row.remove_suffix(1);
    const auto line = static_cast<std::int64_t>(ranks.size()) + 1;
    ranks.push_back(row.empty() ? std::vector<Action>{} : parse_row(row, line));
  }
  return ranks;
}

std::string to_csv(const Schedule& schedule, bool torch) {
  std::string text;
  for (const auto& list : schedule.ranks) {
    for (std::size_t i = 0; i < list.size(); ++i) {
      if (i > 0) text += ',';
      text += to_text(list[i], torch);
    }
    if (list.size() == 1 && list[0].kind == Kind::idle) text += "\"\"";  // else the row would read as one without cells
    text += '\n';
  }
  return text;
}

std::string grid(const Schedule& schedule, std::int64_t rank, std::int64_t step) {
  const auto ranks = static_cast<std::int64_t>(schedule.ranks.size());
  std::int64_t steps = 0;
  for (const auto& list : schedule.ranks) steps = std::max<std::int64_t>(steps, list.size());
  // Without a mark all is printed; around a mark at most 16 ranks and 12 steps.
  const bool marked = rank >= 0;
  const std::int64_t first_rank = marked ? std::max<std::int64_t>(0, std::min(rank - 8, ranks - 16)) : 0;
  const std::int64_t last_rank = marked ? std::min(ranks, first_rank + 16) : ranks;
  const std::int64_t first = marked ? std::max<std::int64_t>(0, std::min(step - 6, steps - 12)) : 0;
  const std::int64_t last = marked ? std::min(std::max(steps, step + 1), first + 12) : steps;
  std::vector<std::vector<std::string>> rows(1, std::vector<std::string>{"step"});
  for (std::int64_t t = first; t < last; ++t) rows[0].push_back(std::to_string(t));
  for (std::int64_t r = first_rank; r < last_rank; ++r) {
    std::vector<std::string> row{"rank " + std::to_string(r)};
    for (std::int64_t t = first; t < last; ++t) {
      const auto& list = schedule.ranks[r];
      std::string cell = t < static_cast<std::int64_t>(list.size()) ? to_text(list[t]) : "";
      if (r == rank && t == step) cell = ">" + (cell.empty() ? std::string("here") : cell) + "<";
      row.push_back(cell.empty() ? "." : cell);
    }
    rows.push_back(std::move(row));
  }
  std::string text;
  std::vector<std::size_t> width(rows[0].size(), 0);
  for (const auto& row : rows) {
    for (std::size_t i = 0; i < row.size(); ++i) width[i] = std::max(width[i], row[i].size());
  }
  for (const auto& row : rows) {
    std::string line;
    for (std::size_t i = 0; i < row.size(); ++i) line += row[i] + std::string(width[i] - row[i].size() + 1, ' ');
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + '\n';
  }
  return text;
}

}  // namespace sparsespan::pipeline
