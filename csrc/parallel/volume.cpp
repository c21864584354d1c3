#include "parallel/volume.h"

#include <algorithm>
#include <numeric>

#include "core/check.h"
#include "parallel/volume_validate.h"

namespace sparsespan {

namespace {

constexpr std::string_view kOp = "volume";

std::int64_t times(std::initializer_list<std::int64_t> factors) {
  std::int64_t product = 1;
  for (const std::int64_t f : factors) product = checked_product(kOp, "bytes of a collective", product, f);
  return product;
}

std::int64_t ceil_over(std::int64_t a, std::int64_t b) { return a / b + (a % b != 0); }

class Rows {
 public:
  explicit Rows(const VolumeParams& p)
      : p_(p), d_(p.dims), tokens_(std::accumulate(p.lengths.begin(), p.lengths.end(), std::int64_t{0})) {}

  std::vector<VolumeRow> take() && { return std::move(rows_); }

  void tp() { o_proj_sum(tokens_, p_.ranks, "2 (N-1) ceil(T hidden / N) e"); }

  void split() {
    const std::int64_t rows = p_.rows >= 0 ? p_.rows : busiest_rows(p_.scheme, p_.lengths, p_.ranks);
    gather_cache(rows, "rows");
    if (p_.tp > 1) o_proj_sum(rows, p_.tp, "2 (tp-1) ceil(rows hidden / tp) e");
    restore(p_.scheme, rows);
  }

  void dsa_cp() {
    const std::int64_t t = p_.rows >= 0 ? p_.rows : busiest_rows("contiguous_flat", p_.lengths, p_.ranks);
    const std::int64_t columns = d_.heads * d_.v_head / (p_.o_proj == "none" ? 1 : p_.ranks);
    gather_cache(t, "ceil(T/N)");
    if (p_.o_proj == "gather_weight") {
      add("o_proj weights", Primitive::all_gather, p_.ranks, d_.layers, times({columns, d_.hidden, p_.weight_bytes}),
          "(N-1) H v / N hidden w");
    }
    if (p_.o_proj == "a2a_rs") {
      add("attention output", Primitive::all_to_all, p_.ranks, d_.layers, times({t, columns, p_.activation_bytes}),
          "(N-1) ceil(T/N) H v / N e");
      add("o_proj output", p_.replicated_state ? Primitive::all_reduce : Primitive::reduce_scatter, p_.ranks, d_.layers,
          times({t, d_.hidden, p_.activation_bytes}),
          p_.replicated_state ? "2 (N-1) ceil(T/N) hidden e" : "(N-1) ceil(T/N) hidden e");
    } else if (p_.replicated_state) {
      add("hidden states", Primitive::all_gather, p_.ranks, d_.layers, times({t, d_.hidden, p_.activation_bytes}),
          "(N-1) ceil(T/N) hidden e");
    }
    if (!p_.replicated_state) restore("contiguous_flat", t);
  }

  void layer_shard() {
    const std::int64_t q_b = times({d_.q_lora, d_.heads, d_.nope + d_.rope, p_.weight_bytes});
    const std::int64_t o = times({d_.heads, d_.v_head, d_.hidden, p_.weight_bytes});
    add("q_b_proj weights", Primitive::broadcast, p_.ranks, d_.layers, q_b, "q_lora H (nope + rope) w");
    add("o_proj weights", Primitive::broadcast, p_.ranks, d_.layers, o, "H v hidden w");
  }

  void dcp() {
    const std::int64_t heads = d_.heads / p_.tp;
    if (!p_.replicate_q) {
      add("query heads", Primitive::all_gather, p_.ranks, d_.layers,
          times({tokens_, heads, d_.kv_lora + d_.rope, p_.activation_bytes}), "(N-1) T h (kv_lora + rope) e");
    }
    exchange_topk();
    if (p_.combine == "a2a") {
      const std::int64_t row = d_.kv_lora * p_.payload_bytes + 4;  // float32 lse beside the partial output
      add("partial out | lse", Primitive::all_to_all, p_.ranks, d_.layers, times({tokens_, heads, row}),
          "(N-1) T h (kv_lora p + 4)");
      return;
    }
    add("lse", Primitive::all_gather, p_.ranks, d_.layers, times({tokens_, heads, p_.ranks, 4}), "(N-1) T h N 4");
    const bool sum = p_.combine == "ar";
    add("partial out", sum ? Primitive::all_reduce : Primitive::reduce_scatter, p_.ranks, d_.layers,
        times({tokens_, heads, d_.kv_lora, p_.payload_bytes}), sum ? "2 (N-1) T h kv_lora p" : "(N-1) T h kv_lora p");
  }

  void block_gather(bool with_index) {
    std::int64_t blocks = 0;
    const std::int64_t span = checked_product(kOp, "page_size", p_.page_size, p_.ranks);
    for (const std::int64_t length : p_.contexts) blocks += ceil_over(length, span);
    add("cached latent pages", Primitive::all_gather, p_.ranks, d_.layers, times({blocks, p_.page_size, p_.kv_bytes}),
        "(N-1) local_pages page_size kv_bytes");
    if (with_index) {
      add("cached index-K pages", Primitive::all_gather, p_.ranks, d_.index_layers,
          times({blocks, p_.page_size, p_.index_bytes}), "(N-1) local_pages page_size index_bytes");
    }
  }

 private:
  void add(std::string what, Primitive primitive, std::int64_t group, std::int64_t count, std::int64_t chunk,
           std::string formula) {
    VolumeRow row{std::move(what), primitive, group, count, chunk, std::move(formula)};
    times({chunk, 2, group, group, std::max<std::int64_t>(count, 1)});  // every figure of the row fits
    if (count > 0) rows_.push_back(std::move(row));
  }

  void gather_cache(std::int64_t rows, const std::string& name) {
    add("latent KV", Primitive::all_gather, p_.ranks, d_.layers, times({rows, p_.kv_bytes}),
        "(N-1) " + name + " kv_bytes");
    add("index-K", Primitive::all_gather, p_.ranks, d_.index_layers, times({rows, p_.index_bytes}),
        "(N-1) " + name + " index_bytes");
  }

  void o_proj_sum(std::int64_t rows, std::int64_t group, std::string formula) {
    const std::int64_t elements = ceil_over(times({rows, d_.hidden}), group);
    add("o_proj output", Primitive::all_reduce, group, d_.layers, times({elements, p_.activation_bytes}),
        std::move(formula));
  }

  // Rows for the LM head, once per step.
  void restore(std::string_view scheme, std::int64_t rows) {
    if (p_.restore == "all") {
      add("hidden rows for the LM head", Primitive::all_gather, p_.ranks, 1,
          times({rows, d_.hidden, p_.activation_bytes}), "(N-1) rows hidden e");
    } else if (p_.restore == "last") {
      const auto owned = p_.last_rows.empty() ? last_rows(scheme, p_.lengths, p_.ranks) : p_.last_rows;
      const std::int64_t row = times({d_.hidden, p_.activation_bytes});
      const std::int64_t all = std::accumulate(owned.begin(), owned.end(), std::int64_t{0});
      add("last rows for the LM head", Primitive::all_gatherv, p_.ranks, 1, times({all, row}),
          "(requests - own) hidden e");
      rows_.back().spared = *std::min_element(owned.begin(), owned.end()) * row;
    }
  }

  void exchange_topk() {
    const std::int64_t per = ceil_over(tokens_, p_.ranks);
    if (p_.index_k == "sharded") {
      add("top-k (score, id)", Primitive::all_gather, p_.ranks, d_.index_layers, times({tokens_, d_.topk, 8}),
          "(N-1) T K 8");
    } else if (p_.index_k == "sharded_routed") {
      add("top-k (score, id)", Primitive::all_to_all, p_.ranks, d_.index_layers, times({per, d_.topk, 8}),
          "(N-1) ceil(T/N) K 8");
      add("top-k ids", Primitive::all_gather, p_.ranks, d_.index_layers, times({per, d_.topk, 4}),
          "(N-1) ceil(T/N) K 4");
    } else if (p_.index_k == "gathered") {
      std::int64_t rows = 0;
      const std::int64_t span = checked_product(kOp, "interleave", p_.interleave, p_.ranks);
      for (const std::int64_t length : p_.contexts) rows += ceil_over(length, span) * p_.interleave;
      add("index-K", Primitive::all_gather, p_.ranks, d_.index_layers, times({rows, p_.index_bytes}),
          "(N-1) sum ceil(context / (N S)) S index_bytes");
    }
  }

  const VolumeParams& p_;
  const AttentionDims& d_;
  std::int64_t tokens_;
  std::vector<VolumeRow> rows_;
};

}  // namespace

std::string_view name_of(Primitive primitive) {
  switch (primitive) {
    case Primitive::all_gather:
    case Primitive::all_gatherv: return "all_gather";
    case Primitive::reduce_scatter: return "reduce_scatter";
    case Primitive::all_reduce: return "all_reduce";
    case Primitive::all_to_all: return "all_to_all";
    case Primitive::broadcast: break;
  }
  return "broadcast";
}

std::int64_t VolumeRow::received() const {
  if (group == 1) return 0;
  if (primitive == Primitive::broadcast) return chunk;
  if (primitive == Primitive::all_gatherv) return chunk - spared;
  return (primitive == Primitive::all_reduce ? 2 : 1) * (group - 1) * chunk;
}

std::int64_t VolumeRow::sent() const { return received(); }

std::int64_t VolumeRow::total() const {
  const bool whole = primitive == Primitive::broadcast || primitive == Primitive::all_gatherv;
  return whole ? (group - 1) * chunk : group * received();
}

std::vector<VolumeRow> volume(const VolumeParams& p) {
  validate_volume(p);
  Rows rows(p);
  if (p.scheme == "tp") {
    rows.tp();
  } else if (p.scheme == "dsa_cp_prefill" || p.scheme == "dsa_cp_decode") {
    rows.dsa_cp();
  } else if (p.scheme == "layer_shard") {
    rows.layer_shard();
  } else if (p.scheme == "dcp") {
    rows.dcp();
  } else if (p.scheme == "block_gather" || p.scheme == "block_regather") {
    rows.block_gather(p.scheme == "block_regather");
  } else {
    rows.split();
  }
  return std::move(rows).take();
}

}  // namespace sparsespan
