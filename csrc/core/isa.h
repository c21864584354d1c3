#pragma once

// Instruction-set levels and the one that ops run at. The level is chosen at run time: the best one that was
// built, that the CPU and the operating system offer, and that the cap (SPARSESPAN_MAX_ISA or set_max_isa)
// allows. Each level has its own fixed order of arithmetic; within a level bits never depend on anything else.

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace sparsespan {

enum class Isa : std::uint8_t { generic, avx2, avx512, amx };
inline constexpr int kIsaCount = 4;
inline constexpr std::array<std::string_view, kIsaCount> kIsaNames = {"generic", "avx2", "avx512", "amx"};

std::string_view name_of(Isa isa);
Isa parse_isa(std::string_view op, std::string_view argument, std::string_view text);

// Why a level cannot run here; empty when it can.
std::string isa_refusal(Isa isa);

Isa active_isa();
void set_max_isa(Isa isa);
Isa max_isa();

}  // namespace sparsespan
