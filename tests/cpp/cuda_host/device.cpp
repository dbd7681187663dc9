// SPDX-License-Identifier: MIT

#include "device.h"

#include <algorithm>
#include <cfenv>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include "fiber.h"
#include "shared_variables.h"

uint3 threadIdx;
uint3 blockIdx;
dim3 blockDim;
dim3 gridDim;

namespace cuda_host {
namespace {

// Not a number as float, double and binary16; -1 as an integer.
constexpr int kFill = 0xff;

enum class State { kReady, kAtBarrier, kInCollective, kReturned };

struct Thread {
  uint3 index = {};
  int number = 0;  // in the block
  State state = State::kReady;
  // Of a collective: what the thread waits in and brings, then what it gets.
  Collective collective = {};
  uint32_t mask = 0;
  int source = 0;
  uint64_t bits = 0;
  uint64_t result = 0;
  std::unique_ptr<Fiber> fiber;
};

// First in, first out. A thread is in it at most once.
class Queue {
 public:
  bool empty() const { return first_ == end_; }
  void push(Thread* thread) { threads_[end_++ % kMaxThreads] = thread; }
  Thread* pop() { return threads_[first_++ % kMaxThreads]; }
  void clear() { first_ = end_ = 0; }

 private:
  Thread* threads_[kMaxThreads];
  unsigned int first_ = 0;
  unsigned int end_ = 0;
};

std::mutex one_launch;  // at a time: all below, and __shared__ variables, are there once
Order thread_order = Order::kForward;

Launch launch;
std::vector<Thread> threads;
int thread_count = 0;                         // of a block of this launch
uint32_t waiting_lanes[kMaxThreads / kWarp];  // in a collective, one word a warp
int at_barrier = 0;
int returned = 0;

// What a running thread has found wrong. Plain data, and put into words on the stack of run(): a
// thread that fails never goes on, and what stands on its stack is not destroyed.
struct Misuse {
  enum { kNone, kNotOfMask, kSourceNotOfMask, kLanesDiffer } kind;
  const Thread* thread;
  const Thread* other;  // of kLanesDiffer
};
Misuse misuse;

Fiber scheduler;
Thread* running = nullptr;
Queue ready;

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
std::unique_ptr<unsigned char, Free> dynamic_memory;

__attribute__((format(printf, 1, 2))) std::string format(const char* text, ...) {
  char buffer[512];
  va_list arguments;
  va_start(arguments, text);
  std::vsnprintf(buffer, sizeof(buffer), text, arguments);
  va_end(arguments);
  return buffer;
}

std::string name(const Thread& thread) {
  return format("thread (%u, %u, %u) of block (%u, %u, %u)", thread.index.x, thread.index.y,
                thread.index.z, blockIdx.x, blockIdx.y, blockIdx.z);
}

const char* name(Collective collective) {
  static constexpr const char* kNames[] = {"__syncwarp",       "__ballot_sync",  "__any_sync",
                                           "__all_sync",       "__shfl_sync",    "__shfl_up_sync",
                                           "__shfl_down_sync", "__shfl_xor_sync"};
  return kNames[static_cast<int>(collective)];
}

std::string whereabouts(const Thread& thread) {
  switch (thread.state) {
    case State::kReady:
      return "is running";
    case State::kAtBarrier:
      return "waits at __syncthreads";
    case State::kInCollective:
      return format("waits in %s with mask 0x%08x", name(thread.collective), thread.mask);
    case State::kReturned:
      return "has returned";
  }
  return "";
}

// Position in the order -> number.
int ordered(int position, int count) {
  return thread_order == Order::kForward ? position : count - 1 - position;
}

// Goes on elsewhere until somebody switches back. With nobody left, run_block finds out why.
void leave() {
  Thread* self = running;
  Thread* next = ready.empty() ? nullptr : ready.pop();
  if (next == self) return;
  running = next;
  Fiber::switch_from_to(*self->fiber, next == nullptr ? scheduler : *next->fiber);
  threadIdx = self->index;
}

[[noreturn]] void fail(const Misuse& found) {
  misuse = found;
  ready.clear();
  leave();
  std::abort();  // nobody switches back: the fibers are dropped
}

void thread_main() {
  for (;;) {  // once a block
    threadIdx = running->index;
    launch.thread(launch.context);
    running->state = State::kReturned;
    ++returned;
    leave();
  }
}

// All lanes of the mask have arrived.
void finish_collective(Thread* warp,  // [lanes]
                       const Thread& last, uint32_t* waiting) {
  uint32_t ballot = 0;
  for (uint32_t lanes = last.mask; lanes != 0; lanes &= lanes - 1) {
    const int lane = __builtin_ctz(lanes);
    const Thread& other = warp[lane];
    if (other.mask != last.mask || other.collective != last.collective) {
      fail({Misuse::kLanesDiffer, &last, &other});
    }
    ballot |= other.bits != 0 ? uint32_t{1} << lane : 0u;
  }
  const bool shuffle = last.collective >= Collective::kShuffle;
  *waiting &= ~last.mask;
  for (int i = 0; i < kWarp; ++i) {
    const int lane = ordered(i, kWarp);
    if ((last.mask >> lane & 1) == 0) continue;
    Thread& thread = warp[lane];
    thread.result = shuffle ? warp[thread.source].bits : ballot;
    thread.state = State::kReady;
    ready.push(&thread);
  }
}

std::string explain_misuse() {
  const std::string start = name(*misuse.thread) + " " + whereabouts(*misuse.thread);
  switch (misuse.kind) {
    case Misuse::kNone:
      break;
    case Misuse::kNotOfMask:
      return start + ", to which its lane " + std::to_string(misuse.thread->number % kWarp) +
             " does not belong";
    case Misuse::kSourceNotOfMask:
      return start + " for the value of lane " + std::to_string(misuse.thread->source) +
             ", which does not belong to it";
    case Misuse::kLanesDiffer:
      return start + ", while of its lanes " + name(*misuse.other) + " " +
             whereabouts(*misuse.other);
  }
  return "";
}

// Why nobody can run.
std::string explain_standstill() {
  for (int i = 0; i < thread_count; ++i) {
    const Thread& thread = threads[i];
    if (thread.state != State::kInCollective) continue;
    const int warp = i / kWarp * kWarp;
    const uint32_t missing = thread.mask & ~waiting_lanes[warp / kWarp];
    if (missing == 0) continue;  // held up by another mask
    const int lane = __builtin_ctz(missing);
    const std::string start = name(thread) + " " + whereabouts(thread) + ", but lane " +
                              std::to_string(lane) + " of the mask ";
    if (warp + lane >= thread_count) return start + "does not exist";
    return start + whereabouts(threads[warp + lane]);
  }
  for (int i = 0; i < thread_count; ++i) {
    const Thread& thread = threads[i];
    if (thread.state == State::kAtBarrier) continue;
    return format("__syncthreads is reached by %d of %d threads, but ", at_barrier, thread_count) +
           name(thread) + " " + whereabouts(thread);
  }
  return "";
}

void fill_shared(const std::vector<SharedVariable>& variables) {
  for (const SharedVariable& variable : variables) {
    std::memset(variable.data, kFill, variable.bytes);
  }
  if (dynamic_memory != nullptr) std::memset(dynamic_memory.get(), kFill, launch.shared_bytes);
}

// Those that the last block has written to, which are those of its kernel.
std::size_t static_shared_bytes(const std::vector<SharedVariable>& variables) {
  std::size_t bytes = 0;
  for (const SharedVariable& variable : variables) {
    const auto written = [](unsigned char byte) { return byte != kFill; };
    const bool used = std::any_of(variable.data, variable.data + variable.bytes, written);
    bytes += used ? variable.bytes : 0;
  }
  return bytes;
}

// Returns what went wrong.
std::string run_block() {
  std::fill(std::begin(waiting_lanes), std::end(waiting_lanes), 0u);
  at_barrier = 0;
  returned = 0;
  misuse.kind = Misuse::kNone;
  for (int i = 0; i < thread_count; ++i) {
    Thread& thread = threads[ordered(i, thread_count)];
    thread.state = State::kReady;
    ready.push(&thread);
  }
  running = ready.pop();
  Fiber::switch_from_to(scheduler, *running->fiber);
  if (misuse.kind != Misuse::kNone) return explain_misuse();
  return returned == thread_count ? "" : explain_standstill();
}

std::string run_blocks() {
  static const std::vector<SharedVariable> variables = shared_variables();
  const int64_t blocks = int64_t{gridDim.x} * gridDim.y * gridDim.z;
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t block = thread_order == Order::kForward ? i : blocks - 1 - i;
    blockIdx = {static_cast<unsigned int>(block % gridDim.x),
                static_cast<unsigned int>(block / gridDim.x % gridDim.y),
                static_cast<unsigned int>(block / gridDim.x / gridDim.y)};
    fill_shared(variables);
    const std::string failure = run_block();
    if (!failure.empty()) return failure;
    if (i > 0) continue;
    const std::size_t bytes = static_shared_bytes(variables) + launch.shared_bytes;
    if (bytes > kMaxSharedBytes) {
      return format("%zu bytes of shared memory, static and dynamic, and at most %zu are there",
                    bytes, kMaxSharedBytes);
    }
  }
  return "";
}

void prepare_threads() {
  thread_count = static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
  if (threads.empty()) threads.resize(kMaxThreads);
  for (int i = 0; i < thread_count; ++i) {
    Thread& thread = threads[i];
    const unsigned int number = static_cast<unsigned int>(i);
    thread.number = i;
    thread.index = {number % blockDim.x, number / blockDim.x % blockDim.y,
                    number / blockDim.x / blockDim.y};
    if (thread.fiber == nullptr) {
      thread.fiber = std::make_unique<Fiber>(thread_main, static_cast<std::size_t>(i));
    }
  }
}

std::string check_shape(const Launch& wanted) {
  const dim3& b = wanted.block;
  const dim3& g = wanted.grid;
  const uint64_t size = uint64_t{b.x} * b.y * b.z;
  if (size == 0 || size > kMaxThreads || b.x > 1024 || b.y > 1024 || b.z > 64) {
    return format("a block of %u x %u x %u threads, and it must have 1 to %u (z: 64)", b.x, b.y,
                  b.z, kMaxThreads);
  }
  if (g.x == 0 || g.y == 0 || g.z == 0 || g.x > 0x7fffffffu || g.y > 65535 || g.z > 65535) {
    return format("a grid of %u x %u x %u blocks, and it must have 1 to 2^31 - 1 (y, z: 65535)",
                  g.x, g.y, g.z);
  }
  return "";
}

// As much as was asked for to the byte, so that AddressSanitizer sees the end.
unsigned char* allocate_dynamic(std::size_t bytes) {
  void* memory = nullptr;
  if (bytes != 0 && posix_memalign(&memory, kSharedAlignment, bytes) != 0) throw std::bad_alloc();
  return static_cast<unsigned char*>(memory);
}

}  // namespace

void set_order(Order order) {
  const std::lock_guard<std::mutex> lock(one_launch);
  thread_order = order;
}

std::string run(const Launch& wanted) {
  const std::lock_guard<std::mutex> lock(one_launch);
  const std::string objection = check_shape(wanted);
  if (!objection.empty()) return objection;
  launch = wanted;
  gridDim = wanted.grid;
  blockDim = wanted.block;
  dynamic_memory.reset(allocate_dynamic(wanted.shared_bytes));
  prepare_threads();
  std::fenv_t environment;  // a GPU knows no modes, flushing of denormal numbers included
  std::fegetenv(&environment);
  std::fesetenv(FE_DFL_ENV);
  const std::string failure = run_blocks();
  std::fesetenv(&environment);
  dynamic_memory.reset();
  if (!failure.empty()) threads.clear();  // with fibers that stand amid the kernel
  return failure;
}

void sync_threads() {
  running->state = State::kAtBarrier;
  if (++at_barrier == thread_count) {
    at_barrier = 0;
    for (int i = 0; i < thread_count; ++i) {
      Thread& thread = threads[ordered(i, thread_count)];
      thread.state = State::kReady;
      ready.push(&thread);
    }
  }
  leave();
}

uint64_t sync_lanes(Collective collective, uint32_t mask, uint64_t bits, int source) {
  Thread& self = *running;
  const int lane = self.number % kWarp;
  self.collective = collective;
  self.mask = mask;
  self.bits = bits;
  self.source = source;
  self.state = State::kInCollective;
  if ((mask >> lane & 1) == 0) fail({Misuse::kNotOfMask, &self, nullptr});
  if (collective >= Collective::kShuffle && (mask >> source & 1) == 0) {
    fail({Misuse::kSourceNotOfMask, &self, nullptr});
  }
  uint32_t* waiting = &waiting_lanes[self.number / kWarp];
  *waiting |= uint32_t{1} << lane;
  if ((*waiting & mask) == mask) finish_collective(&self - lane, self, waiting);
  leave();
  return self.result;
}

int lane() { return running->number % kWarp; }

unsigned char* dynamic_shared() { return dynamic_memory.get(); }

}  // namespace cuda_host
