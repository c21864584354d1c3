// What the CPU and the operating system offer, asked once.

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "core/check.h"
#include "core/isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace sparsespan {

namespace {

bool emulation_is(std::string_view wanted) {
  const char* value = std::getenv("SPARSESPAN_EMULATE_AMX");
  const std::string_view text = value == nullptr ? "" : value;
  if (!text.empty() && text != "0" && text != "1" && text != "refused") {
    refuse_value("sparsespan", "SPARSESPAN_EMULATE_AMX", "is \"", text, "\", needs 0, 1 or refused");
  }
  return text == wanted;
}

#if defined(__x86_64__)
struct Features {
  bool avx2 = false;
  bool avx512 = false;
  bool bf16 = false;  // AVX512-BF16 and VBMI
  bool tiles = false;
  bool amd = false;
};

Features read_features() {
  Features f;
  __builtin_cpu_init();
  // __builtin_cpu_supports also asks the operating system (XGETBV) for the wide registers.
  f.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  f.avx512 = f.avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  f.amd = __builtin_cpu_is("amd") != 0;
  unsigned a = 0;
  unsigned b = 0;
  unsigned c = 0;
  unsigned d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return f;
  const bool vbmi = (c >> 1 & 1U) != 0;
  f.tiles = (d >> 22 & 1U) != 0 && (d >> 24 & 1U) != 0;  // AMX-BF16, AMX-TILE
  const unsigned subleaves = a;
  if (subleaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0) f.bf16 = f.avx512 && vbmi && (a >> 5 & 1U) != 0;
  return f;
}

const Features& features() {
  static const Features value = read_features();
  return value;
}

std::string avx2_refusal() {
#ifndef SPARSESPAN_HAVE_AVX2
  return "not built: the compiler has no AVX2";
#else
  return features().avx2 ? "" : "the CPU lacks AVX2, FMA or F16C";
#endif
}

std::string avx512_refusal() {
#ifndef SPARSESPAN_HAVE_AVX512
  return "not built: the compiler has no AVX-512";
#else
  return features().avx512 ? "" : "the CPU lacks AVX-512 F, BW, VL, DQ, FMA or F16C";
#endif
}

std::string bf16_refusal() {
#ifndef SPARSESPAN_HAVE_AVX512_BF16
  return "not built: the compiler has no AVX512-BF16";
#else
  if (!features().bf16) return "the CPU lacks AVX512-BF16 or VBMI";
  return features().amd ? "" : "this CPU's bfloat16 dot products are slower than its float32 multiply-adds";
#endif
}

// Asks for the tile registers; Linux grants them to the whole process, threads to come included.
std::string ask_for_tiles() {
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;               // XFEATURE_XTILEDATA
  if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0) return "";
  const int error = errno;
  if (error == ENOSPC) return "Linux refused the tile registers: a thread has a sigaltstack too small to save them";
  return std::string("Linux refused the tile registers (") + std::strerror(error) + ", it has them since 5.16)";
}

std::string amx_refusal() {
#ifndef SPARSESPAN_HAVE_AMX
  return "not built: the compiler has no AVX512-BF16";
#else
  // For tests of a refusal: Linux is asked as if the CPU had tiles. If it grants them, the CPU still decides.
  static const std::string refused = emulation_is("refused") ? ask_for_tiles() : "";
  if (!refused.empty()) return refused;
  if (amx_emulated()) return features().bf16 ? "" : "emulated AMX needs a CPU with AVX512-BF16 and VBMI";
  if (!features().tiles || !features().bf16) return "the CPU lacks AMX-TILE, AMX-BF16, AVX512-BF16 or VBMI";
  static const std::string answer = ask_for_tiles();
  return answer;
#endif
}
#else
constexpr const char* kForeign = "not an x86-64 CPU";
std::string avx2_refusal() { return kForeign; }
std::string avx512_refusal() { return kForeign; }
std::string bf16_refusal() { return kForeign; }
std::string amx_refusal() { return kForeign; }
#endif

}  // namespace

bool amx_emulated() {
  static const bool wanted = emulation_is("1");
  return wanted;
}

std::string isa_refusal(Isa isa) {
  switch (isa) {
    case Isa::generic: return "";
    case Isa::avx2: return avx2_refusal();
    case Isa::avx512: return avx512_refusal();
    case Isa::avx512_bf16: return bf16_refusal();
    case Isa::amx: return amx_refusal();
  }
  return "unknown";
}

}  // namespace sparsespan
