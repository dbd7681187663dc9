// SPDX-License-Identifier: MIT
//
// Results must not depend on what another library did to the processor's floating-point mode:
// torch.set_flush_denormal, for one, makes 0 of denormal means. Every CPU kernel whose output
// reaches a stream runs under a ScopedFloatMode, on each of its threads.

#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace groupedmixer {

// Round to nearest even, denormals kept, no traps; the caller's mode returns at the end of the
// scope.
class ScopedFloatMode {
 public:
  ScopedFloatMode() : saved_(read()) { write(kDefault); }
  ~ScopedFloatMode() { write(saved_); }
  ScopedFloatMode(const ScopedFloatMode&) = delete;
  ScopedFloatMode& operator=(const ScopedFloatMode&) = delete;

 private:
#if defined(__x86_64__)
  static constexpr uint64_t kDefault = 0x1f80;  // MXCSR at process start: all exceptions masked
  static uint64_t read() { return _mm_getcsr(); }
  static void write(uint64_t mode) { _mm_setcsr(static_cast<uint32_t>(mode)); }
#elif defined(__aarch64__)
  static constexpr uint64_t kDefault = 0;  // FPCR at process start
  static uint64_t read() {
    uint64_t mode;
    asm volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
  }
  static void write(uint64_t mode) { asm volatile("msr fpcr, %0" : : "r"(mode) : "memory"); }
#else
#error "ScopedFloatMode has to be written for this processor"
#endif

  const uint64_t saved_;
};

}  // namespace groupedmixer
