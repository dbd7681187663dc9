// SPDX-License-Identifier: MIT
//
// A fiber is a stack and the place where its code has stopped. A switch costs some nanoseconds, as
// it goes through no kernel: all fibers run on the thread that switches to them.

#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#define CUDA_HOST_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CUDA_HOST_ASAN 1
#endif
#endif

// CUDA_HOST_UCONTEXT takes the portable way on x86-64 too, for tests.
#if !defined(__x86_64__) && !defined(CUDA_HOST_UCONTEXT)
#define CUDA_HOST_UCONTEXT 1
#endif

#if defined(CUDA_HOST_UCONTEXT)
#include <ucontext.h>
#endif

namespace cuda_host {

class Fiber {
 public:
  // The stack of the caller.
  Fiber() = default;

  // A stack of its own, on which `entry` begins with the first switch. `entry` must not return.
  // Fibers of different `colour` keep their frames in different cache sets; without that, stacks
  // at equal distances would evict one another.
  Fiber(void (*entry)(), std::size_t colour);

  // What stands on the stack is dropped, without destructors.
  ~Fiber();

  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Stops `from`, which must be the running one, until something switches to it again.
  static void switch_from_to(Fiber& from, Fiber& to);

 private:
  static void begin();

  void (*entry_)() = nullptr;
  char* memory_ = nullptr;  // the guard page, then the stack; null for the caller's own
#if defined(CUDA_HOST_UCONTEXT)
  ucontext_t context_ = {};
#else
  void* stack_pointer_ = nullptr;
#endif
#if defined(CUDA_HOST_ASAN)
  static void finish_switch(void* fake_stack);

  const void* stack_bottom_ = nullptr;
  std::size_t stack_bytes_ = 0;
  void* fake_stack_ = nullptr;
#endif
};

}  // namespace cuda_host
