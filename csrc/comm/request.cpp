#include "comm/request.h"

#include <algorithm>
#include <functional>
#include <numeric>

#include "core/check.h"

namespace sparsespan {

namespace {

constexpr std::array<std::string_view, kCommOpCount> kNames = {
    "all_gather", "all_to_all", "reduce_scatter", "all_reduce", "broadcast", "send", "recv", "barrier", "split"};

std::string list_text(const std::vector<std::int64_t>& values) {
  std::string text = "[";
  for (std::size_t i = 0; i < values.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(values[i]);
  return text + "]";
}

std::string shape_text(const Fingerprint& print) {
  return list_text({print.shape.begin(), print.shape.begin() + std::clamp<std::int64_t>(print.axes, 0, 5)});
}

std::string hex_text(std::uint64_t value) {
  std::string digits(16, '0');
  for (int i = 15; i >= 0; --i, value >>= 4) digits[i] = "0123456789abcdef"[value & 15U];
  return digits;
}

struct Field {
  const char* name;
  std::string (*text)(const Stamp&);
};

const Field kFields[] = {
    {"op", [](const Stamp& s) { return std::string(name_of(s.print.op)); }},
    {"sequence number", [](const Stamp& s) { return std::to_string(s.print.sequence); }},
    {"dtype", [](const Stamp& s) { return std::string(name_of(static_cast<DType>(s.print.dtype))); }},
    {"reduction", [](const Stamp& s) { return std::string(name_of(s.print.reduce)); }},
    {"root", [](const Stamp& s) { return std::to_string(s.print.root); }},
    {"shape", [](const Stamp& s) { return shape_text(s.print); }},
    {"counts",
     [](const Stamp& s) {
       return s.print.op == CommOp::all_gather ? list_text(s.recv_bytes) + " bytes" : std::string("equal");
     }},
    {"plan", [](const Stamp& s) { return s.print.plan == 0 ? std::string("none") : hex_text(s.print.plan); }},
};

std::unique_ptr<rank_mismatch> make_mismatch(const Stamp& first, const char* field, const std::string& what,
                                             std::vector<int> ranks) {
  const std::string op(name_of(first.print.op));
  auto error = std::make_unique<rank_mismatch>(
      is_collective(first.print.op)
          ? detail::join(op, " (collective ", first.print.sequence, "): ", field, " differs: ", what)
          : detail::join("send and recv: ", field, " differs: ", what));
  error->op = op;
  error->sequence = first.print.sequence;
  error->field = field;
  error->ranks = std::move(ranks);
  return error;
}

// Ranks grouped by value, in order of the value's first rank.
struct Side {
  std::string value;
  std::vector<int> ranks;
};

std::vector<Side> sides_of(const Field& field, const std::vector<const Stamp*>& stamps, const std::vector<int>& names) {
  std::vector<Side> sides;
  for (int r = 0; r < static_cast<int>(stamps.size()); ++r) {
    const std::string value = field.text(*stamps[r]);
    auto side = std::find_if(sides.begin(), sides.end(), [&](const Side& s) { return s.value == value; });
    if (side == sides.end()) side = sides.insert(sides.end(), Side{value, {}});
    side->ranks.push_back(names[r]);
  }
  return sides;
}

std::unique_ptr<rank_mismatch> compare_field(const Field& field, const std::vector<const Stamp*>& stamps,
                                             const std::vector<int>& names) {
  const auto sides = sides_of(field, stamps, names);
  if (sides.size() == 1) return nullptr;
  // Whom to name: everybody but the largest side; of equal sides the one with the lowest rank is taken as right.
  const auto largest =
      std::max_element(sides.begin(), sides.end(), [](auto& a, auto& b) { return a.ranks.size() < b.ranks.size(); });
  std::string what;
  std::vector<int> others;
  for (auto side = sides.begin(); side != sides.end(); ++side) {
    what += (what.empty() ? "" : ", ") + side->value + " on " + ranks_text(side->ranks);
    if (side != largest) others.insert(others.end(), side->ranks.begin(), side->ranks.end());
  }
  std::sort(others.begin(), others.end());
  return make_mismatch(*stamps[0], field.name, what, std::move(others));
}

std::unique_ptr<rank_mismatch> compare_pairs(const std::vector<const Stamp*>& stamps) {
  const int ranks = static_cast<int>(stamps.size());
  for (int from = 0; from < ranks; ++from) {
    for (int to = 0; to < ranks; ++to) {
      const std::int64_t sends = stamps[from]->send_bytes[to];
      const std::int64_t takes = stamps[to]->recv_bytes[from];
      if (sends == takes) continue;
      return make_mismatch(
          *stamps[0], "counts",
          detail::join("rank ", from, " sends ", sends, " bytes, rank ", to, " takes ", takes, " from it"), {from, to});
    }
  }
  return nullptr;
}

// Whether no field that is compared can differ: texts are made only for ranks that disagree.
bool agree(const Stamp& a, const Stamp& b) {
  const Fingerprint &x = a.print, &y = b.print;
  return x.op == y.op && x.sequence == y.sequence && x.dtype == y.dtype && x.reduce == y.reduce && x.root == y.root &&
         x.axes == y.axes && x.shape == y.shape && x.plan == y.plan &&
         (x.op != CommOp::all_gather || a.recv_bytes == b.recv_bytes);
}

}  // namespace

std::string_view name_of(CommOp op) {
  const auto i = static_cast<std::size_t>(op);
  return i < kNames.size() ? kNames[i] : "unknown";
}

std::string_view name_of(Reduce reduce) {
  if (reduce == Reduce::none) return "none";
  return reduce == Reduce::sum ? "sum" : "max";
}

std::string ranks_text(const std::vector<int>& ranks) {
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    if (i > 0) text += i + 1 == ranks.size() ? " and " : ", ";
    text += std::to_string(ranks[i]);
  }
  return text;
}

ByteRange piece_of(const std::vector<std::int64_t>& sizes, int rank) {
  return {std::accumulate(sizes.begin(), sizes.begin() + rank, std::int64_t{0}), sizes[rank]};
}

ByteRange reduce_piece(const Request& request, int ranks, int rank) {
  const std::int64_t width = size_of(request.dtype);
  const std::int64_t count = request.bytes / width;
  // count * rank / ranks without the product: each of the first count % ranks ranks has one element more.
  const auto begin = [&](std::int64_t r) { return count / ranks * r + std::min(count % ranks, r); };
  return {begin(rank) * width, (begin(rank + 1) - begin(rank)) * width};
}

std::unique_ptr<rank_mismatch> find_mismatch(const std::vector<const Stamp*>& stamps) {
  if (std::all_of(stamps.begin(), stamps.end(), [&](const Stamp* s) { return agree(*stamps[0], *s); })) {
    return stamps[0]->print.op == CommOp::all_to_all ? compare_pairs(stamps) : nullptr;
  }
  std::vector<int> names(stamps.size());
  std::iota(names.begin(), names.end(), 0);
  for (const auto& field : kFields) {
    if (auto error = compare_field(field, stamps, names)) return error;
  }
  return stamps[0]->print.op == CommOp::all_to_all ? compare_pairs(stamps) : nullptr;
}

std::unique_ptr<rank_mismatch> find_mismatch(const Stamp& send, int from, const Stamp& recv, int to) {
  Stamp taken = recv;
  taken.print.op = send.print.op;
  taken.print.sequence = send.print.sequence;
  for (const auto& field : kFields) {
    if (auto error = compare_field(field, {&send, &taken}, {from, to})) return error;
  }
  return nullptr;
}

std::string op_text(const Request& request) {
  const auto name = name_of(request.op);
  if (request.op == CommOp::send) return detail::join(name, " (to rank ", request.peer, ", tag ", request.tag, ")");
  if (request.op == CommOp::recv) return detail::join(name, " (from rank ", request.peer, ", tag ", request.tag, ")");
  return detail::join(name, " (collective ", request.stamp.print.sequence, ")");
}

std::uint64_t plan_hash(std::string_view text) {
  if (text.empty()) return 0;
  std::uint64_t hash = 0xCBF29CE484222325ULL;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3ULL;
  return hash;
}

}  // namespace sparsespan
