// SPDX-License-Identifier: MIT

#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

#if defined(CUDA_HOST_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(CUDA_HOST_UCONTEXT)
// Saves what a function has to preserve on the stack, and the stack pointer in *%rdi; goes on with
// the stack pointer %rsi. The floating-point modes are left alone: all fibers share one.
asm(R"(
  .text
  .p2align 4
  .type cuda_host_switch_stack, @function
cuda_host_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size cuda_host_switch_stack, .-cuda_host_switch_stack
)");
extern "C" void cuda_host_switch_stack(void** save, void* load);
#endif

namespace cuda_host {
namespace {

constexpr std::size_t kGuardBytes = std::size_t{64} << 10;  // a page of any machine
constexpr std::size_t kStackBytes = std::size_t{256} << 10;
constexpr std::size_t kCacheLine = 64;
constexpr std::size_t kColours = 64;  // lines of the smallest page, the sets of a first-level cache

Fiber* running = nullptr;  // set ahead of a switch, to the fiber that it leads to
Fiber* left = nullptr;     // ... and to the one that it stops

}  // namespace

Fiber::Fiber(void (*entry)(), std::size_t colour) : entry_(entry) {
  // Pages count once they are touched.
  void* memory = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  memory_ = static_cast<char*>(memory);
  mprotect(memory_, kGuardBytes, PROT_NONE);
  const std::size_t usable = kStackBytes - colour * 5 % kColours * kCacheLine;
#if defined(CUDA_HOST_ASAN)
  stack_bottom_ = memory_ + kGuardBytes;
  stack_bytes_ = kStackBytes;
#endif
#if defined(CUDA_HOST_UCONTEXT)
  getcontext(&context_);
  context_.uc_stack.ss_sp = memory_ + kGuardBytes;
  context_.uc_stack.ss_size = usable;
  makecontext(&context_, &Fiber::begin, 0);
#else
  // What cuda_host_switch_stack takes off: six registers, where to return to, and there, in place
  // of a caller, none. A function begins 8 bytes below a multiple of 16.
  void** top = reinterpret_cast<void**>(memory_ + kGuardBytes + usable);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(&Fiber::begin);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  stack_pointer_ = top;
#endif
}

Fiber::~Fiber() {
  if (memory_ == nullptr) return;
#if defined(CUDA_HOST_ASAN)
  __asan_unpoison_memory_region(memory_ + kGuardBytes, kStackBytes);
#endif
  munmap(memory_, kGuardBytes + kStackBytes);
}

void Fiber::switch_from_to(Fiber& from, Fiber& to) {
  left = &from;
  running = &to;
#if defined(CUDA_HOST_ASAN)
  __sanitizer_start_switch_fiber(&from.fake_stack_, to.stack_bottom_, to.stack_bytes_);
#endif
#if defined(CUDA_HOST_UCONTEXT)
  swapcontext(&from.context_, &to.context_);
#else
  cuda_host_switch_stack(&from.stack_pointer_, to.stack_pointer_);
#endif
#if defined(CUDA_HOST_ASAN)
  finish_switch(from.fake_stack_);
#endif
}

#if defined(CUDA_HOST_ASAN)
void Fiber::finish_switch(void* fake_stack) {
  // Tells the bounds of the stack that was left: of a caller's own, nobody else does.
  __sanitizer_finish_switch_fiber(fake_stack, &left->stack_bottom_, &left->stack_bytes_);
}
#endif

void Fiber::begin() {
#if defined(CUDA_HOST_ASAN)
  finish_switch(nullptr);
#endif
  running->entry_();
}

}  // namespace cuda_host
