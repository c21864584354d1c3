#include "kernels/probe.h"

#include <array>
#include <atomic>
#include <chrono>

#include "core/check.h"
#include "core/parallel.h"
#include "kernels/dispatch.h"

namespace sparsespan {

extern const ProbeKernels generic_probe_kernels;
extern const ProbeKernels avx2_probe_kernels;
extern const ProbeKernels avx512_probe_kernels;

namespace {

constexpr std::string_view kOp = "probe";

const ProbeKernels* probe_of(Isa isa) {
  switch (isa) {
    case Isa::generic: return &generic_probe_kernels;
    case Isa::avx2: return SPARSESPAN_AVX2(avx2_probe_kernels);
    case Isa::avx512: return SPARSESPAN_AVX512(avx512_probe_kernels);
    case Isa::amx: return nullptr;
  }
  return nullptr;
}

}  // namespace

double probe_flops_per_second(Isa isa, std::int64_t iterations, int threads) {
  if (iterations < 1) refuse_value(kOp, "iterations", "is ", iterations, ", needs at least 1");
  const std::string refusal = isa_refusal(isa);
  if (!refusal.empty()) refuse_value(kOp, "isa", "is \"", name_of(isa), "\", which cannot run here: ", refusal);
  const ProbeKernels* kernels = probe_of(isa);
  if (kernels == nullptr) refuse_value(kOp, "isa", "is \"", name_of(isa), "\", which has no probe");
  const int team = team_size(4096, threads);
  std::atomic<float> sink{0.0F};
  const auto start = std::chrono::steady_clock::now();
  parallel_for(team, team, [&](std::int64_t, int) { sink.store(kernels->multiply_add(iterations)); });
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  return static_cast<double>(iterations) * kernels->flops_per_iteration * team / seconds.count();
}

}  // namespace sparsespan
