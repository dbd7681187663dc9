// SPDX-License-Identifier: MIT
//
// Small kernels for test_cuda_host.cpp. Pointers are device pointers.

#pragma once

#include <cstdint>

// ---- kernels that are right ----

constexpr int kSumThreads = 256;

// Through shared memory, pairwise.
void launch_sum(const float* values,  // [count]
                float* sums,          // [ceil(count / kSumThreads)]
                int count);

// Inclusive, within each warp.
void launch_scan(const int* values,  // [count]
                 int* sums,          // [count]
                 int count);

void launch_transpose(const float* in,  // [rows, columns]
                      float* out,       // [columns, rows]
                      int rows, int columns);

// Every element one chain of fused multiply-adds in order of k, from +0. `tile` is 8 or 32.
void launch_gemm(const float* a,  // [m, k]
                 const float* b,  // [k, n]
                 float* c,        // [m, n]
                 int m, int n, int k, int tile);

struct Lanes {
  int wrapped, up, down, crossed;  // shuffles by 3 (crossed: 5) in segments of `width`
  double wide;                     // of 8 bytes, from lane 0 of the segment
  uint32_t ballot;                 // of odd lanes
  int any, all;                    // of "lane < 40"
};
// Two warps, the second with 20 lanes.
constexpr int kLaneThreads = 52;
void launch_lanes(Lanes* lanes,  // [kLaneThreads]
                  int width);

// Lanes of even and of odd number sum up 1 + lane on their own.
void launch_halves(int* sums);  // [32]

struct Counts {
  int by_value[4];
  int largest, smallest;
  uint32_t bits, parity;  // of which values there are some, an odd number
  uint64_t chain;         // by compare and swap
};
// Atomics on shared, then on global memory, over several blocks.
void launch_count(const int* values,  // [count], 0 to 3
                  Counts* counts,     // [1]
                  int count);

// threadIdx, blockIdx and sizes, and an argument of the thread's own.
void launch_number(int* numbers);  // [2 * 3 * 4 blocks, 3 * 2 * 2 threads]

void launch_divide(float a, float b, float* quotient);

// *sum = scale * *sum + amount.
void launch_scale_and_add(int scale, int amount, int* sum, void* stream);

// ---- kernels that are wrong ----

void launch_early_return(int threads, int returning);
void launch_barrier_in_a_branch();
void launch_lane_missing(int threads, int returning);
void launch_lanes_elsewhere();
void launch_masks_that_differ();
void launch_foreign_lane();
void launch_foreign_mask();

// Static memory of 40 KiB and this much dynamic memory.
void launch_shared(int dynamic_bytes);
void launch_block(int x, int y, int z);
void launch_grid(int x, int y, int z);

// Each thread reads what its neighbours write, without a barrier in between.
void launch_race(int* values);  // [64]

// A word of shared memory that nobody writes.
void launch_unwritten(float* statically, float* dynamically);

// Write the element `index`, of 64 where the memory is shared.
void launch_static_overrun(int index);
void launch_dynamic_overrun(int index);
void launch_global_overrun(int* values, int index);

// Reads a float4.
void launch_misaligned(const float* values, float* sum);
