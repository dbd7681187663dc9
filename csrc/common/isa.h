// SPDX-License-Identifier: MIT
//
// The instruction sets that kernels are compiled for, and the choice between them at run time.
//
// A file named *_isa.cpp is compiled once per variant, each time into the namespace
// GROUPEDMIXER_VARIANT and with that variant's compiler flags (setup.py, isa_variants). It exports
// one constant struct of function pointers, which a dispatching file declares and picks:
//
//   GROUPEDMIXER_DECLARE_VARIANTS(SymbolKernels, symbol_kernels)
//   const SymbolKernels& kernels = GROUPEDMIXER_PICK_VARIANT(symbol_kernels);
//
// A *_isa.cpp must not instantiate inline functions or templates of other headers with external
// linkage (std::vector, say): the linker keeps one copy for all variants, maybe the AVX-512 one.

#pragma once

#include <string>

namespace groupedmixer {

enum class Isa { kScalar = 0, kAvx2 = 1, kAvx512 = 2 };

const char* isa_name(Isa isa);

// The names of this build's variants, joined. The first is that of Isa 0, and so on.
std::string isa_names(const char* separator);

// Whether this machine (and this build) can run the variant.
bool isa_available(Isa isa);

// The widest available variant, or the one that GROUPEDMIXER_ISA=scalar|avx2|avx512 forces. Read
// once. Throws std::runtime_error if the variable names no variant or one that is not available.
Isa active_isa();

}  // namespace groupedmixer

#if defined(__x86_64__)
#define GROUPEDMIXER_DECLARE_VARIANTS(Type, name) \
  namespace scalar {                              \
  extern const Type name;                         \
  }                                               \
  namespace avx2 {                                \
  extern const Type name;                         \
  }                                               \
  namespace avx512 {                              \
  extern const Type name;                         \
  }
#define GROUPEDMIXER_PICK_VARIANT(name)                                        \
  (::groupedmixer::active_isa() == ::groupedmixer::Isa::kAvx512 ? avx512::name \
   : ::groupedmixer::active_isa() == ::groupedmixer::Isa::kAvx2 ? avx2::name   \
                                                                : scalar::name)
#else
#define GROUPEDMIXER_DECLARE_VARIANTS(Type, name) \
  namespace scalar {                              \
  extern const Type name;                         \
  }
#define GROUPEDMIXER_PICK_VARIANT(name) (::groupedmixer::active_isa(), scalar::name)
#endif
