#include "kernels/probe.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstring>

#include "core/check.h"
#include "core/parallel.h"
#include "core/scratch.h"
#include "kernels/dispatch.h"

namespace sparsespan {

extern const ProbeKernels generic_probe_kernels;
extern const ProbeKernels avx2_probe_kernels;
extern const ProbeKernels avx512_probe_kernels;
extern const ProbeKernels avx512_bf16_probe_kernels;
extern const ProbeKernels amx_probe_kernels;
extern const ProbeKernels amx_emulated_probe_kernels;

namespace {

constexpr std::string_view kOp = "probe";
constexpr std::int64_t kPiece = 256 * 1024;

const ProbeKernels* probe_of(Isa isa) {
  switch (isa) {
    case Isa::generic: return &generic_probe_kernels;
    case Isa::avx2: return SPARSESPAN_AVX2(avx2_probe_kernels);
    case Isa::avx512: return SPARSESPAN_AVX512(avx512_probe_kernels);
    case Isa::avx512_bf16: return SPARSESPAN_AVX512_BF16(avx512_bf16_probe_kernels);
    case Isa::amx: return SPARSESPAN_AMX(amx_probe_kernels, amx_emulated_probe_kernels);
  }
  return nullptr;
}

}  // namespace

namespace {

const ProbeKernels& require_probe(Isa isa, std::int64_t iterations) {
  if (iterations < 1) refuse_value(kOp, "iterations", "is ", iterations, ", needs at least 1");
  const std::string refusal = isa_refusal(isa);
  if (!refusal.empty()) refuse_value(kOp, "isa", "is \"", name_of(isa), "\", which cannot run here: ", refusal);
  const ProbeKernels* kernels = probe_of(isa);
  if (kernels == nullptr) refuse_value(kOp, "isa", "is \"", name_of(isa), "\", which has no probe");
  return *kernels;
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

double probe_flops_per_second(Isa isa, std::int64_t iterations, int threads) {
  const ProbeKernels& kernels = require_probe(isa, iterations);
  const int team = team_size(4096, threads);
  std::atomic<float> sink{0.0F};
  const auto start = std::chrono::steady_clock::now();
  parallel_for(team, team, [&](std::int64_t, int) { sink.store(kernels.multiply_add(iterations)); });
  return static_cast<double>(iterations) * kernels.flops_per_iteration * team / seconds_since(start);
}

std::vector<double> probe_flops_per_thread(Isa isa, std::int64_t iterations, int threads) {
  const ProbeKernels& kernels = require_probe(isa, iterations);
  const int team = team_size(4096, threads);
  std::vector<double> rates(team);
  std::vector<float> sinks(team);
  std::atomic<int> arrived{0};
  const auto begin = std::chrono::steady_clock::now();
  parallel_for(team, team, [&](std::int64_t i, int) {
    // One task per thread: who is awake waits for the others instead of doing their share. Not for ever: the runtime
    // may give fewer threads than were asked for.
    arrived.fetch_add(1);
    while (arrived.load() < team && seconds_since(begin) < 2e-3) {
    }
    const auto start = std::chrono::steady_clock::now();
    sinks[i] = kernels.multiply_add(iterations);
    rates[i] = static_cast<double>(iterations) * kernels.flops_per_iteration / seconds_since(start);
  });
  return rates;
}

void probe_copy(const std::byte* from, std::byte* to, std::int64_t bytes, int threads) {
  parallel_for(ceil_div(bytes, kPiece), threads, [&](std::int64_t i, int) {
    const std::int64_t size = std::min(kPiece, bytes - i * kPiece);
    std::memcpy(to + i * kPiece, from + i * kPiece, static_cast<std::size_t>(size));
  });
}

std::uint64_t probe_read(const std::byte* from, std::int64_t bytes, int threads) {
  std::atomic<std::uint64_t> total{0};
  parallel_for(ceil_div(bytes, kPiece), threads, [&](std::int64_t i, int) {
    constexpr int kLanes = 32;  // sums that the compiler keeps in registers
    std::uint64_t sums[kLanes] = {};
    const std::int64_t words = std::min(kPiece, bytes - i * kPiece) / 8;
    for (std::int64_t w = 0; w + kLanes <= words; w += kLanes) {
      std::uint64_t block[kLanes];
      std::memcpy(block, from + i * kPiece + w * 8, sizeof block);
      for (int lane = 0; lane < kLanes; ++lane) sums[lane] += block[lane];
    }
    std::uint64_t sum = 0;
    for (const std::uint64_t lane : sums) sum += lane;
    total.fetch_add(sum);
  });
  return total.load();
}

}  // namespace sparsespan
