#include "pipeline/action.h"

#include <array>
#include <charconv>
#include <limits>
#include <utility>

#include "core/check.h"

namespace sparsespan::pipeline {

namespace {

constexpr std::array<std::string_view, kKinds> kNames = {
    "",       "F",           "B",      "I",      "W",      "SEND_F",      "RECV_F",
    "SEND_B", "RECV_B",      "SEND_X", "RECV_X", "SEND_T", "RECV_T",      "FETCH",
    "EVICT",  "REDUCE_GRAD", "P",      "D",      "S",      "OVERLAP_F_B", "MIXED"};

// Other spellings that are read, never written (but for the first two in torch's CSV).
constexpr std::array<std::pair<std::string_view, Kind>, 3> kAliases = {
    {{"UNSHARD", Kind::fetch}, {"RESHARD", Kind::evict}, {"OVERLAP", Kind::overlap}}};

class Reader {
 public:
  Reader(std::string_view text, std::int64_t line, std::int64_t column) : text_(text), line_(line), column_(column) {}

  Action whole() {
    Action action = cell();
    if (at_ < text_.size()) fail("'", text_.substr(at_), "' is left over");
    return action;
  }

 private:
  template <class... Parts>
  [[noreturn]] void fail(const Parts&... parts) const {
    throw schedule_error(detail::join("Schedule: line ", line_, ", column ", column_ + static_cast<std::int64_t>(at_),
                                      ": ", parts..., " in '", text_,
                                      "'; an action reads <stage><kind><microbatch>, such as 2F0"));
  }
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  bool take(char c) {
    if (peek() != c) return false;
    ++at_;
    return true;
  }
  bool at_digit() const { return peek() >= '0' && peek() <= '9'; }

  std::int64_t number(std::string_view what, std::int64_t most) {
    if (!at_digit()) fail("no ", what);
    std::int64_t value = 0;
    const char* first = text_.data() + at_;
    const auto [end, error] = std::from_chars(first, text_.data() + text_.size(), value);
    if (error != std::errc() || value > most) fail(what, " is larger than ", most);
    at_ += static_cast<std::size_t>(end - first);
    return value;
  }
  std::int32_t small(std::string_view what) {
    return static_cast<std::int32_t>(number(what, std::numeric_limits<std::int32_t>::max()));
  }

  Kind kind() {
    std::size_t end = at_;
    while (end < text_.size() && ((text_[end] >= 'A' && text_[end] <= 'Z') || text_[end] == '_')) ++end;
    const std::string_view word = text_.substr(at_, end - at_);
    for (int k = 1; k < kKinds; ++k) {
      if (kNames[k] == word) return at_ = end, static_cast<Kind>(k);
    }
    for (const auto& [name, alias] : kAliases) {
      if (name == word) return at_ = end, alias;
    }
    if (word.empty()) fail("no kind of action");
    fail("unknown kind '", word, "'");
  }

  // @request:start+length
  void identity(Action& action) {
    if (!take('@')) fail("no '@request:start+length' after a ", action.kind == Kind::prefill ? "prefill" : "decode");
    constexpr std::int64_t kMost = std::int64_t{1} << 40;  // sums of positions stay far from 2^63
    action.request = small("request");
    if (!take(':')) fail("no ':'");
    action.start = number("start", kMost);
    if (!take('+')) fail("no '+'");
    action.length = number("length", kMost);
  }

  Action leaf() {
    Action action;
    action.stage = small("stage number");
    const std::size_t before = at_;
    action.kind = kind();
    if (is_container(action.kind)) {
      at_ = before;
      fail(name_of(action.kind), " needs its parts in brackets, (0F7;7B3)OVERLAP_F_B,");
    }
    if (has_microbatch(action.kind)) action.microbatch = small("micro-batch number");
    if (action.kind == Kind::prefill || action.kind == Kind::decode) identity(action);
    return action;
  }

  Action cell() {
    if (!take('(')) return leaf();
    Action container;
    do {
      container.parts.push_back(leaf());
    } while (take(';'));
    if (!take(')')) fail("no ')'");
    const std::size_t before = at_;
    container.kind = kind();
    if (!is_container(container.kind)) {
      at_ = before;
      fail("a bracket ends in OVERLAP_F_B or MIXED, not in ", name_of(container.kind));
    }
    return container;
  }

  std::string_view text_;
  std::int64_t line_;
  std::int64_t column_;
  std::size_t at_ = 0;
};

}  // namespace

std::string_view name_of(Kind kind, bool torch) {
  if (torch && kind == Kind::fetch) return "UNSHARD";
  if (torch && kind == Kind::evict) return "RESHARD";
  return kNames[static_cast<std::size_t>(kind)];
}

std::string to_text(const Action& action, bool torch) {
  if (action.kind == Kind::idle) return "";
  std::string text;
  if (is_container(action.kind)) {
    text = "(";
    for (const Action& part : action.parts) {
      if (text.size() > 1) text += ';';
      text += to_text(part, torch);
    }
    text += ')';
    return text += name_of(action.kind);
  }
  text = std::to_string(action.stage);
  text += name_of(action.kind, torch);
  if (has_microbatch(action.kind)) text += std::to_string(action.microbatch);
  if (action.kind == Kind::prefill || action.kind == Kind::decode) {
    text +=
        '@' + std::to_string(action.request) + ':' + std::to_string(action.start) + '+' + std::to_string(action.length);
  }
  return text;
}

Action parse_action(std::string_view text, std::int64_t line, std::int64_t column) {
  return Reader(text, line, column).whole();
}

}  // namespace sparsespan::pipeline
