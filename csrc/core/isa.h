#pragma once

// Instruction-set levels and the one that ops run at. The level is chosen at run time: the best one that was
// built, that the CPU and the operating system offer, and that the cap (SPARSESPAN_MAX_ISA or set_max_isa)
// allows. Each level has its own fixed order of arithmetic; within a level bits never depend on anything else.

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace sparsespan {

// avx512_bf16 is for CPUs whose bfloat16 dot products are faster than their float32 multiply-adds (AMD from Zen 4).
enum class Isa : std::uint8_t { generic, avx2, avx512, avx512_bf16, amx };
inline constexpr int kIsaCount = 5;
inline constexpr std::array<std::string_view, kIsaCount> kIsaNames = {"generic", "avx2", "avx512", "avx512_bf16",
                                                                      "amx"};

std::string_view name_of(Isa isa);
Isa parse_isa(std::string_view op, std::string_view argument, std::string_view text);

// Why a level cannot run here; empty when it can. For amx the first call asks the kernel for the tile registers, which
// it grants to a whole process: ops ask before their threads start, and only when the cap lets them use the level.
std::string isa_refusal(Isa isa);
// True when SPARSESPAN_EMULATE_AMX=1 lets the amx level run on tiles emulated with AVX-512, for tests.
bool amx_emulated();

Isa active_isa();
void set_max_isa(Isa isa);
Isa max_isa();

}  // namespace sparsespan
