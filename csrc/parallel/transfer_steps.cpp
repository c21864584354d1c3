#include "parallel/transfer_steps.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <string>
#include <utility>

#include "core/parallel.h"
#include "quant/token_stream.h"

namespace sparsespan {

namespace {

constexpr std::string_view kOp = "run_transfer";
constexpr std::string_view kParts[] = {"kv", "index"};

std::string argument(std::string_view side, std::string_view field, std::int64_t i) {
  return std::string(side) + "." + std::string(field) + "[" + std::to_string(i) + "]";
}

// Eight bytes at a time; the tail is filled with zeros.
std::uint64_t hash_bytes(std::uint64_t seed, const std::byte* data, std::int64_t bytes) {
  std::uint64_t state = seed * 0x9E3779B97F4A7C15ULL + static_cast<std::uint64_t>(bytes);
  for (std::int64_t i = 0; i < bytes; i += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, data + i, static_cast<std::size_t>(std::min<std::int64_t>(8, bytes - i)));
    state = (state ^ word) * 0xBF58476D1CE4E5B9ULL;
    state ^= state >> 29U;
  }
  return state;
}

}  // namespace

TransferSteps::TransferSteps(const RunTransferParams& params, int rank, int ranks) : p_(params) {
  check_rank_lists(ranks);
  check_layouts();
  source_ = open("source", p_.source, p_.src_page_size, false);
  dest_ = open("dest", p_.dest, p_.dst_page_size, true);
  for (std::size_t row = 0; row < p_.table.size(); ++row) add(static_cast<std::int64_t>(row), rank);
  refuse_twice_taken();
}

void TransferSteps::check_rank_lists(int ranks) const {
  std::int64_t prefill = 0;
  std::int64_t decode = 0;
  for (const Transfer& t : p_.table) {
    prefill = std::max(prefill, t.src + 1);
    decode = std::max(decode, t.dst + 1);
  }
  const std::pair<std::string_view, std::pair<const std::vector<int>&, std::int64_t>> lists[] = {
      {"prefill_ranks", {p_.prefill_ranks, prefill}}, {"decode_ranks", {p_.decode_ranks, decode}}};
  for (const auto& [name, list] : lists) {
    const auto& [members, needed] = list;
    if (static_cast<std::int64_t>(members.size()) < needed) {
      refuse_value(kOp, name, "has ", members.size(), " ranks, needs one for each of the side's, at least ", needed);
    }
    std::vector<bool> taken(static_cast<std::size_t>(ranks), false);
    for (const int r : members) {
      if (r < 0 || r >= ranks) refuse_value(kOp, name, "has ", r, ", needs ranks of comm, 0 to ", ranks - 1);
      if (taken[static_cast<std::size_t>(r)]) refuse_value(kOp, name, "has ", r, " twice, needs each rank once");
      taken[static_cast<std::size_t>(r)] = true;
    }
  }
}

void TransferSteps::check_layouts() const {
  for (const int part : {0, 1}) {
    const KvLayout layout = part == 0 ? p_.layout : p_.index_layout;
    const bool moves = std::any_of(p_.table.begin(), p_.table.end(), [&](const Transfer& t) { return t.part == part; });
    if (moves && layout_info(layout).bytes_per_token() != p_.bytes[part]) {
      refuse_value(kOp, part == 0 ? "layout" : "index_layout", "is \"", layout_info(layout).name, "\" of ",
                   layout_info(layout).bytes_per_token(), " bytes per token, needs the plan's ", p_.bytes[part]);
    }
  }
}

TransferSteps::Book TransferSteps::open(std::string_view name, const TransferCaches& caches, std::int64_t page_size,
                                        bool writes) const {
  Book book;
  for (const int part : {0, 1}) {
    const KvLayout layout = part == 0 ? p_.layout : p_.index_layout;
    const auto& arrays = part == 0 ? caches.kv : caches.index;
    for (std::size_t layer = 0; layer < arrays.size(); ++layer) {
      book.held[part].push_back(arrays[layer].present);
      book.caches[part].emplace_back();
      if (!arrays[layer].present) continue;
      const std::string what = argument(name, kParts[part], static_cast<std::int64_t>(layer));
      book.caches[part].back() = require_paged_cache(kOp, what, arrays[layer], layout, page_size);
      if (writes) require_writable(kOp, what, arrays[layer], {});
    }
  }
  return book;
}

PositionSet TransferSteps::set_of(const Transfer& t) const {
  return {.src = p_.src_layout[t.part],
          .dst = p_.dst_layout[t.part],
          .src_class = t.src_class,
          .dst_class = t.dst_class,
          .start = t.start,
          .stop = t.stop};
}

// Slots of one side, all of them inside each of the line's caches.
std::vector<std::int64_t> TransferSteps::slots(const Transfer& t, bool source) const {
  const std::string_view name = source ? "source" : "dest";
  const TransferCaches& caches = source ? p_.source : p_.dest;
  const Book& book = source ? source_ : dest_;
  if (!caches.present) refuse_value(kOp, name, "is None, but the plan gives this rank a part in request ", t.request);
  const bool own_pages = t.part == 1 && !caches.index_pages.empty();
  const auto& tables = own_pages ? caches.index_pages : caches.pages;
  if (t.request >= static_cast<std::int64_t>(tables.size()) || !tables[t.request].present) {
    refuse_value(kOp, argument(name, own_pages ? "index_pages" : "pages", t.request),
                 "is missing, needs the request's page ids on this rank");
  }
  TransferSlotsParams p{set_of(t), source, tables[t.request], source ? p_.src_page_size : p_.dst_page_size};
  auto out = transfer_slots(p);
  const std::int64_t highest = out.empty() ? -1 : *std::max_element(out.begin(), out.end());
  for (std::int64_t layer = t.layer_begin; layer < t.layer_end; ++layer) {
    const auto l = static_cast<std::size_t>(layer);
    if (l >= book.held[t.part].size() || !book.held[t.part][l]) {
      refuse_value(kOp, argument(name, kParts[t.part], layer), "is missing, needs this layer's cache on this rank");
    }
    if (highest >= book.caches[t.part][l].slots()) {
      refuse_index(kOp, argument(name, own_pages ? "index_pages" : "pages", t.request), "names page ",
                   highest / p.page_size, ", needs one of the ", book.caches[t.part][l].pages, " pages of ",
                   argument(name, kParts[t.part], layer));
    }
  }
  return out;
}

void TransferSteps::add(std::int64_t row, int rank) {
  const Transfer& t = p_.table[static_cast<std::size_t>(row)];
  TransferStep step;
  step.row = row;
  step.src = p_.prefill_ranks[static_cast<std::size_t>(t.src)];
  step.dst = p_.decode_ranks[static_cast<std::size_t>(t.dst)];
  step.gives = step.src == rank;
  step.takes = step.dst == rank;
  if (!step.gives && !step.takes) return;
  step.layers = t.layer_end - t.layer_begin;
  step.tokens = t.tokens;
  step.width = layout_info(t.part == 0 ? p_.layout : p_.index_layout).bytes_per_token();
  if (step.gives) step.src_slots = slots(t, true);
  if (step.takes) step.dst_slots = slots(t, false);
  lay_out_pages(step);
  steps_.push_back(std::move(step));
}

// Positions go up, so do their pages: a page's tokens are neighbours.
void TransferSteps::lay_out_pages(TransferStep& step) const {
  const Transfer& t = line(step);
  const BlockCyclic& layout = p_.dst_layout[t.part];
  std::int64_t token = 0;
  for (const std::int64_t p : positions_of(set_of(t))) {
    const std::int64_t page = layout.local(p) / p_.dst_page_size;
    if (step.page_place.empty() || step.page_place.back() != page) {
      step.page_place.push_back(page);
      step.page_start.push_back(token);
    }
    ++token;
  }
  step.page_start.push_back(token);
}

// Two requests that share a page here would overwrite each other.
void TransferSteps::refuse_twice_taken() const {
  std::map<std::pair<std::int64_t, std::int64_t>, std::vector<std::int64_t>> taken;  // (part, first layer) -> request
  for (const TransferStep& step : steps_) {
    if (!step.takes) continue;
    const Transfer& t = line(step);
    auto& requests = taken[{t.part, t.layer_begin}];
    requests.resize(static_cast<std::size_t>(dest_.caches[t.part][static_cast<std::size_t>(t.layer_begin)].slots()),
                    -1);
    for (const std::int64_t slot : step.dst_slots) {
      std::int64_t& owner = requests[static_cast<std::size_t>(slot)];
      if (owner >= 0) {
        refuse_value(kOp, "dest.pages", "gives slot ", slot, " to requests ", owner, " and ", t.request,
                     ", needs pages of their own; leave a shared prefix out with present=");
      }
      owner = t.request;
    }
  }
}

void TransferSteps::pack(const TransferStep& step, std::byte* message) const {
  const Transfer& t = line(step);
  const KvLayout layout = t.part == 0 ? p_.layout : p_.index_layout;
  const TokenCodec stream(token_stream(layout, message, step.layers * step.tokens, step.width));
  parallel_rows(step.layers * step.tokens, step.width, p_.threads, [&](std::int64_t i, int) {
    const auto layer = static_cast<std::size_t>(t.layer_begin + i / step.tokens);
    copy_token(TokenCodec(source_.caches[t.part][layer]), step.src_slots[i % step.tokens], stream, i);
  });
  parallel_for(step.layers * step.pages(), p_.threads, [&](std::int64_t i, int) {
    const std::uint64_t sum = checksum(step, message, i / step.pages(), i % step.pages());
    std::memcpy(message + step.payload() + i * 8, &sum, sizeof sum);
  });
}

// The seed tells layers, requests and pages apart: a page that lands in another's place is seen.
std::uint64_t TransferSteps::checksum(const TransferStep& step, const std::byte* message, std::int64_t layer,
                                      std::int64_t page) const {
  const Transfer& t = line(step);
  const std::int64_t first = step.page_start[page];
  std::uint64_t seed = static_cast<std::uint64_t>(t.request) * 0x100000001B3ULL;
  seed = (seed ^ static_cast<std::uint64_t>(t.layer_begin + layer)) * 0x100000001B3ULL;
  seed = (seed ^ static_cast<std::uint64_t>(step.page_place[page] * 2 + t.part)) * 0x100000001B3ULL;
  return hash_bytes(seed, message + (layer * step.tokens + first) * step.width,
                    (step.page_start[page + 1] - first) * step.width);
}

BadPage TransferSteps::verify(const TransferStep& step, const std::byte* message) const {
  for (std::int64_t i = 0; i < step.layers * step.pages(); ++i) {
    std::uint64_t sent = 0;
    std::memcpy(&sent, message + step.payload() + i * 8, sizeof sent);
    if (sent == checksum(step, message, i / step.pages(), i % step.pages())) continue;
    return {step.row, i / step.pages(), step.page_place[i % step.pages()]};
  }
  return {};
}

void TransferSteps::store(const TransferStep& step, const std::byte* message) const {
  const Transfer& t = line(step);
  const KvLayout layout = t.part == 0 ? p_.layout : p_.index_layout;
  auto* data = const_cast<std::byte*>(message);  // a stream is read and written through one type
  const TokenCodec stream(token_stream(layout, data, step.layers * step.tokens, step.width));
  parallel_rows(step.layers * step.tokens, step.width, p_.threads, [&](std::int64_t i, int) {
    const auto layer = static_cast<std::size_t>(t.layer_begin + i / step.tokens);
    copy_token(stream, i, TokenCodec(dest_.caches[t.part][layer]), step.dst_slots[i % step.tokens]);
  });
}

}  // namespace sparsespan
