#pragma once

// A plan's fingerprint: 64-bit FNV-1a over its canonical text, as 16 hexadecimal digits. The same on every
// machine, in every process and in the NumPy twin, so that ranks may compare plans before they move data.

#include <cstdint>
#include <string>
#include <string_view>

namespace sparsespan {

inline std::string fingerprint_of(std::string_view text) {
  std::uint64_t hash = 0xCBF29CE484222325ULL;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3ULL;
  std::string digits(16, '0');
  for (int i = 15; i >= 0; --i, hash >>= 4) digits[i] = "0123456789abcdef"[hash & 15U];
  return digits;
}

}  // namespace sparsespan
