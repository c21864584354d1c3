// What a plan says per segment, per request and per rank. All of it is read off the rank's rows.

#include <algorithm>
#include <numeric>

#include "parallel/cp_plan.h"

namespace sparsespan {

CpSegments CpPlan::segments(std::int64_t rank) const {
  CpSegments out;
  std::int64_t next_row = -1;
  std::int64_t next_id = -1;
  each_visible(rank, [&](std::int64_t local, const CpRow& row) {
    const std::int64_t part = batch_.part_of(row.request, row.offset);
    if (local != next_row || row.id != next_id || out.request.back() != row.request || out.part.back() != part) {
      out.request.push_back(row.request);
      out.part.push_back(part);
      out.q_start.push_back(local);
      out.q_len.push_back(0);
      out.kv_len.push_back(0);
    }
    ++out.q_len.back();
    out.kv_len.back() = batch_.prefix[row.request] + row.offset + 1;
    next_row = local + 1;
    next_id = row.id + 1;
  });
  return out;
}

CpSeqLens CpPlan::seq_lens(std::int64_t rank) const {
  CpSeqLens out;
  if (batch_.scheme == CpScheme::interleave) {  // rows of a rank are no run: every row is a query of its own
    each_visible(rank, [&](std::int64_t, const CpRow& row) {
      out.q.push_back(static_cast<std::int64_t>(out.q.size()) + 1);
      out.kv.push_back(batch_.prefix[row.request] + row.offset + 1);
    });
    return out;
  }
  const std::int64_t requests = batch_.requests();
  out.parts = batch_.has_parts() ? 2 : 1;
  out.q.assign(out.parts * requests, 0);
  out.kv.assign(out.parts * requests, 0);
  each_visible(rank, [&](std::int64_t, const CpRow& row) {
    const std::int64_t at = batch_.part_of(row.request, row.offset) * requests + row.request;
    ++out.q[at];
    out.kv[at] = batch_.prefix[row.request] + row.offset + 1;
  });
  for (std::int64_t part = 0; part < out.parts; ++part) {
    const auto first = out.q.begin() + part * requests;
    std::partial_sum(first, first + requests, first);
  }
  return out;
}

Ints CpPlan::part_rows(std::int64_t rank, int part) const {
  Ints out;
  each_visible(rank, [&](std::int64_t local, const CpRow& row) {
    if (batch_.part_of(row.request, row.offset) == part) out.push_back(local);
  });
  return out;
}

Ints CpPlan::request_counts(std::int64_t rank) const {
  Ints out(batch_.requests(), 0);
  each_visible(rank, [&](std::int64_t, const CpRow& row) { ++out[row.request]; });
  return out;
}

Ints CpPlan::kept_requests(std::int64_t rank) const {
  const Ints counts = request_counts(rank);
  Ints out;
  for (std::int64_t s = 0; s < batch_.requests(); ++s) {
    if (counts[s] > 0) out.push_back(s);
  }
  return out;
}

std::int64_t CpPlan::nbytes() const {
  const auto bytes = [](const auto& v) { return static_cast<std::int64_t>(v.size() * sizeof(*v.data())); };
  return bytes(batch_.cu) + bytes(batch_.prefix) + bytes(batch_.kind) + bytes(batch_.real) + bytes(batch_.split_len) +
         bytes(batch_.whole) + bytes(batch_.k_start) + bytes(rank_start_) + bytes(pad_start_) + bytes(*codes_) +
         bytes(restore_);
}

Ints CpPlan::counts() const {
  Ints out(batch_.world_size);
  for (std::int64_t r = 0; r < batch_.world_size; ++r) out[r] = local_rows(r);
  return out;
}

Ints CpPlan::real_counts() const {
  Ints out(batch_.world_size, 0);
  for (std::int64_t r = 0; r < batch_.world_size; ++r) {
    each_visible(r, [&](std::int64_t, const CpRow&) { ++out[r]; });
  }
  return out;
}

Ints CpPlan::owner() const {
  Ints out = restore_index();
  for (auto& row : out) row /= padded_len_;
  return out;
}

Ints CpPlan::decode_requests() const {
  Ints out;
  for (std::int64_t s = 0; s < batch_.requests() && !batch_.kind.empty(); ++s) {
    if (batch_.real[s] > 0 && batch_.kind[batch_.cu[s]] == static_cast<std::uint8_t>(RowKind::decode)) out.push_back(s);
  }
  return out;
}

Ints CpPlan::last_row_index() const {
  Ints out(batch_.requests(), -1);
  for (std::int64_t s = 0; s < batch_.requests(); ++s) {
    if (batch_.real[s] > 0) out[s] = restore_.data()[batch_.cu[s] + batch_.real[s] - 1];
  }
  return out;
}

Ints CpPlan::last_row_owner() const {
  Ints out = last_row_index();
  for (auto& row : out) row = row < 0 ? -1 : row / padded_len_;
  return out;
}

std::vector<double> CpPlan::rank_costs(CpCost cost, std::int64_t topk) const {
  std::vector<double> out(batch_.world_size, 0.0);
  for (std::int64_t r = 0; r < batch_.world_size; ++r) {
    each_visible(r, [&](std::int64_t, const CpRow& row) {
      const std::int64_t keys = batch_.prefix[row.request] + row.offset + 1;
      const std::int64_t units = cost == CpCost::rows ? 1 : cost == CpCost::indexer ? keys : std::min(keys, topk);
      out[r] += static_cast<double>(units);
    });
  }
  return out;
}

}  // namespace sparsespan
