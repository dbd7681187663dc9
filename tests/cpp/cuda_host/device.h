// SPDX-License-Identifier: MIT
//
// Runs the blocks of a launch one after another, each with one fiber a thread. A thread runs until
// it waits or returns; then the next one does. What a GPU leaves undefined is an error here, see
// cuda_runtime.h.

#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "vector_types.h"

extern uint3 threadIdx;
extern uint3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;

namespace cuda_host {

constexpr int kWarp = 32;
constexpr unsigned int kMaxThreads = 1024;                          // of a block
constexpr std::size_t kMaxSharedBytes = std::size_t{227} << 10;     // ... of an H100
constexpr std::size_t kDefaultSharedBytes = std::size_t{48} << 10;  // unless asked for
constexpr std::size_t kSharedAlignment = 128;

// In which order the blocks of a launch run, and the threads of a block from one barrier to the
// next. A result that depends on it comes from a missing barrier, or from atomics on floats.
enum class Order { kForward, kReverse };
void set_order(Order order);

struct Launch {
  dim3 grid;
  dim3 block;
  std::size_t shared_bytes;  // dynamic, at most kMaxSharedBytes
  void (*thread)(void* context);
  void* context;
};

// What is wrong with the launch or with what the kernel did, or "" if all went well.
std::string run(const Launch& launch);

// ---- for a thread of a running kernel ----

enum class Collective {
  kSyncWarp,
  kBallot,
  kAny,
  kAll,
  kShuffle,
  kShuffleUp,
  kShuffleDown,
  kShuffleXor,
};

void sync_threads();

// Waits for the lanes of `mask`, all of which have to call the same function with the same mask.
// Returns the bits of the lane `source` of a shuffle, or the set of lanes whose bits are not 0.
uint64_t sync_lanes(Collective collective, uint32_t mask, uint64_t bits = 0, int source = 0);

int lane();

unsigned char* dynamic_shared();

}  // namespace cuda_host
