#include <string_view>

#include "core/check.h"
#include "pipeline/generate.h"

namespace sparsespan::pipeline {

namespace {

constexpr std::int64_t kMostTokens = std::int64_t{1} << 40;  // what the text form reads
constexpr std::int64_t kMostPasses = 100'000'000;

void require_ranks(std::string_view op, std::int64_t ranks) {
  if (ranks < 1) refuse_value(op, "ranks", "is ", ranks, ", needs at least 1");
  if (ranks > kMostPasses) refuse_value(op, "ranks", "is ", ranks, ", needs at most ", kMostPasses);
}

void require_passes(std::string_view op, std::string_view name, std::int64_t ranks, std::int64_t count,
                    std::int64_t batches_each) {
  if (count > kMostPasses / ranks / batches_each) {
    refuse_value(op, name, "is ", count, ": the schedule would have more than ", kMostPasses, " passes");
  }
}

void require_batch(std::string_view op, std::int64_t depth, std::int64_t batch) {
  if (depth < 0) refuse_value(op, "depth", "is ", depth, ", needs 0 or more");
  if (depth > kMostPasses) refuse_value(op, "depth", "is ", depth, ", needs at most ", kMostPasses);
  if (batch < 1) refuse_value(op, "batch", "is ", batch, ", needs at least 1");
  if (batch > kMostTokens) refuse_value(op, "batch", "is ", batch, ", needs at most ", kMostTokens);
}

Action pass(Kind kind, std::int64_t microbatch, std::int64_t request, std::int64_t start, std::int64_t length) {
  Action a;
  a.kind = kind;
  a.microbatch = static_cast<std::int32_t>(microbatch);
  a.request = static_cast<std::int32_t>(request);
  a.start = start;
  a.length = length;
  return a;
}

// What goes through all stages, and whether its last stage samples.
struct Batch {
  std::vector<Action> parts;
  std::vector<std::int32_t> samples;  // micro-batches sampled after it
};

Schedule through_all_stages(std::int64_t ranks, const std::vector<Batch>& batches, std::int64_t microbatches) {
  std::vector<std::vector<Action>> lists(static_cast<std::size_t>(ranks));
  for (std::int64_t r = 0; r < ranks; ++r) {
    for (const Batch& batch : batches) {
      std::vector<Action> parts = batch.parts;
      for (Action& part : parts) part.stage = static_cast<std::int32_t>(r);
      Action cell = parts[0];
      if (parts.size() > 1) {
        cell = Action{};
        cell.kind = Kind::mixed;
        cell.parts = std::move(parts);
      }
      lists[r].push_back(std::move(cell));
      if (r + 1 < ranks) continue;
      for (const std::int32_t m : batch.samples) {
        Action sample;
        sample.kind = Kind::sample;
        sample.stage = static_cast<std::int32_t>(r);
        sample.microbatch = m;
        lists[r].push_back(std::move(sample));
      }
    }
  }
  return make_schedule(std::move(lists), ranks, microbatches, "serve");
}

void require_chunks(std::string_view op, const std::vector<std::int64_t>& chunks, std::int64_t prefix) {
  if (prefix > kMostTokens) refuse_value(op, "prefix", "is ", prefix, ", needs at most ", kMostTokens);
  for (std::size_t i = 0; i < chunks.size(); ++i) {
    if (chunks[i] < 1) refuse_value(op, "chunks", "hold ", chunks[i], " tokens at ", i, ", need at least 1");
    if (chunks[i] > kMostTokens - prefix) {
      refuse_value(op, "chunks", "hold ", chunks[i], " tokens at ", i, " after ", prefix, ", need a prompt of at most ",
                   kMostTokens);
    }
    prefix += chunks[i];
  }
}

}  // namespace

Schedule chunked_prefill(std::int64_t ranks, const std::vector<std::vector<std::int64_t>>& chunks,
                         const std::vector<std::int64_t>& prefixes) {
  require_ranks("chunked_prefill", ranks);
  if (!prefixes.empty() && prefixes.size() != chunks.size()) {
    refuse_value("chunked_prefill", "prefixes", "has ", prefixes.size(), " values, needs one for each of the ",
                 chunks.size(), " requests");
  }
  std::vector<Batch> batches;
  for (std::size_t q = 0; q < chunks.size(); ++q) {
    std::int64_t start = prefixes.empty() ? 0 : prefixes[q];
    if (start < 0) refuse_value("chunked_prefill", "prefixes", "is ", start, " at ", q, ", needs 0 or more");
    require_chunks("chunked_prefill", chunks[q], start);
    for (std::size_t i = 0; i < chunks[q].size(); ++i) {
      const auto m = static_cast<std::int32_t>(batches.size());
      Batch batch{{pass(Kind::prefill, m, static_cast<std::int64_t>(q), start, chunks[q][i])}, {}};
      if (i + 1 == chunks[q].size()) batch.samples.push_back(m);
      batches.push_back(std::move(batch));
      start += chunks[q][i];
    }
  }
  const auto microbatches = static_cast<std::int64_t>(batches.size());
  return through_all_stages(ranks, batches, microbatches);
}

Schedule decode_loop(std::int64_t ranks, std::int64_t steps, std::int64_t depth, std::int64_t batch) {
  require_ranks("decode_loop", ranks);
  require_batch("decode_loop", depth, batch);
  if (steps < 0) refuse_value("decode_loop", "steps", "is ", steps, ", needs 0 or more");
  const std::int64_t slots = ranks + depth;
  require_passes("decode_loop", "steps", ranks, steps, slots);
  std::vector<Batch> batches;
  for (std::int64_t step = 0; step < steps; ++step) {
    for (std::int64_t slot = 0; slot < slots; ++slot) {
      const auto m = static_cast<std::int32_t>(batches.size());
      batches.push_back({{pass(Kind::decode, m, slot, step, batch)}, {m}});
    }
  }
  const auto microbatches = static_cast<std::int64_t>(batches.size());
  return through_all_stages(ranks, batches, microbatches);
}

Schedule mixed_prefill_decode(std::int64_t ranks, const std::vector<std::int64_t>& chunks, std::int64_t prefix,
                              std::int64_t depth, std::int64_t batch) {
  require_ranks("mixed_prefill_decode", ranks);
  require_batch("mixed_prefill_decode", depth, batch);
  if (prefix < 0) refuse_value("mixed_prefill_decode", "prefix", "is ", prefix, ", needs 0 or more");
  require_chunks("mixed_prefill_decode", chunks, prefix);
  const std::int64_t slots = ranks + depth;
  std::vector<Batch> batches;
  std::int64_t start = prefix;
  for (std::size_t i = 0; i < chunks.size(); ++i) {
    const auto turn = static_cast<std::int64_t>(i);
    const auto m = static_cast<std::int32_t>(2 * i);
    // Request 0 is the one being prefilled, slots 1, 2, ... decode.
    Batch mixed{
        {pass(Kind::prefill, m, 0, start, chunks[i]), pass(Kind::decode, m + 1, 1 + turn % slots, turn / slots, batch)},
        {m + 1}};
    if (i + 1 == chunks.size()) mixed.samples.insert(mixed.samples.begin(), m);
    batches.push_back(std::move(mixed));
    start += chunks[i];
  }
  return through_all_stages(ranks, batches, 2 * static_cast<std::int64_t>(chunks.size()));
}

}  // namespace sparsespan::pipeline
