// SPDX-License-Identifier: MIT

#include "common/isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <array>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace groupedmixer {
namespace {

// Those that GROUPEDMIXER_DECLARE_VARIANTS declares, widest last.
#if defined(__x86_64__)
constexpr std::array<Isa, 3> kBuilt = {Isa::kScalar, Isa::kAvx2, Isa::kAvx512};
#else
constexpr std::array<Isa, 1> kBuilt = {Isa::kScalar};
#endif

#if defined(__x86_64__)
// Not every compiler's __builtin_cpu_supports knows it. The system saves its registers if AVX2's.
bool has_f16c() {
  unsigned int eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
#endif

Isa choose_isa() {
  const char* forced = std::getenv("GROUPEDMIXER_ISA");
  for (auto isa = kBuilt.rbegin(); isa != kBuilt.rend(); ++isa) {
    if (forced == nullptr) {
      if (isa_available(*isa)) return *isa;
    } else if (std::string(forced) == isa_name(*isa)) {
      if (isa_available(*isa)) return *isa;
      throw std::runtime_error("GROUPEDMIXER_ISA=" + std::string(forced) +
                               " is not available on this machine");
    }
  }
  throw std::runtime_error("GROUPEDMIXER_ISA must be one of " + isa_names(", ") + ", got '" +
                           std::string(forced) + "'");
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kScalar:
      break;
  }
  return "scalar";
}

std::string isa_names(const char* separator) {
  std::string names;
  for (const Isa isa : kBuilt)
    names += (names.empty() ? "" : separator) + std::string(isa_name(isa));
  return names;
}

// The compiler's builtins also ask whether the operating system saves the wider registers.
bool isa_available(Isa isa) {
  if (isa == Isa::kScalar) return true;
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  if (isa == Isa::kAvx2) return avx2;
  return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

Isa active_isa() {
  static const Isa isa = choose_isa();
  return isa;
}

}  // namespace groupedmixer
