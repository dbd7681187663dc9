// SPDX-License-Identifier: MIT

#include "common/cuda_launch.h"
#include "cuda_host_kernels.h"
#include "strict/math.h"

namespace {

using groupedmixer::launch;

constexpr unsigned int kAllLanes = 0xffffffffu;

unsigned int ceil_div(int a, int b) { return static_cast<unsigned int>((a + b - 1) / b); }

__global__ void sum_kernel(const float* values, float* sums, int count) {
  __shared__ float partial[kSumThreads];
  const int thread = static_cast<int>(threadIdx.x);
  const int i = static_cast<int>(blockIdx.x) * kSumThreads + thread;
  partial[thread] = i < count ? values[i] : 0.0f;
  for (int half = kSumThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half) partial[thread] = __fadd_rn(partial[thread], partial[thread + half]);
  }
  if (thread == 0) sums[blockIdx.x] = partial[0];
}

__global__ void scan_kernel(const int* values, int* sums, int count) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int sum = i < count ? __ldg(values + i) : 0;
  for (int step = 1; step < 32; step *= 2) {
    const int before = __shfl_up_sync(kAllLanes, sum, static_cast<unsigned int>(step));
    if (lane >= step) sum += before;
  }
  if (i < count) sums[i] = sum;
}

constexpr int kTransposeTile = 32;
constexpr int kTransposeRows = 8;

__global__ void transpose_kernel(const float* in, float* out, int rows, int columns) {
  __shared__ float tile[kTransposeTile][kTransposeTile + 1];
  const int x = static_cast<int>(threadIdx.x);
  const int first_row = static_cast<int>(blockIdx.y) * kTransposeTile;
  const int first_column = static_cast<int>(blockIdx.x) * kTransposeTile;
  for (int y = static_cast<int>(threadIdx.y); y < kTransposeTile; y += kTransposeRows) {
    const int row = first_row + y;
    const int column = first_column + x;
    if (row < rows && column < columns) tile[y][x] = in[row * columns + column];
  }
  __syncthreads();
  for (int y = static_cast<int>(threadIdx.y); y < kTransposeTile; y += kTransposeRows) {
    const int row = first_row + x;
    const int column = first_column + y;
    if (row < rows && column < columns) out[column * rows + row] = tile[x][y];
  }
}

template <int kTile>
__global__ void __launch_bounds__(kTile* kTile)
    gemm_kernel(const float* __restrict__ a, const float* __restrict__ b, float* __restrict__ c,
                int m, int n, int k) {
  GROUPEDMIXER_DYNAMIC_SHARED(float, a_tile);  // [kTile, kTile]
  float* const b_tile = a_tile + kTile * kTile;
  const int x = static_cast<int>(threadIdx.x);
  const int y = static_cast<int>(threadIdx.y);
  const int row = static_cast<int>(blockIdx.y) * kTile + y;
  const int column = static_cast<int>(blockIdx.x) * kTile + x;
  float sum = 0.0f;
  for (int first = 0; first < k; first += kTile) {
    if (row < m && first + x < k) a_tile[y * kTile + x] = a[row * k + first + x];
    if (first + y < k && column < n) b_tile[y * kTile + x] = b[(first + y) * n + column];
    __syncthreads();
    const int end = k - first < kTile ? k - first : kTile;
    for (int i = 0; i < end; ++i) {
      sum = groupedmixer::strict::fused(a_tile[y * kTile + i], b_tile[i * kTile + x], sum);
    }
    __syncthreads();
  }
  if (row < m && column < n) c[row * n + column] = sum;
}

__global__ void lanes_kernel(Lanes* lanes, int width) {
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const unsigned int mask = thread < 32 ? kAllLanes : (1u << (kLaneThreads - 32)) - 1;
  Lanes& own = lanes[thread];
  if (thread < 32) {
    own.wrapped = __shfl_sync(mask, thread, lane + 3, width);
    own.down = __shfl_down_sync(mask, thread, 3, width);
    own.crossed = __shfl_xor_sync(mask, thread, 5, width);
  }
  own.up = __shfl_up_sync(mask, thread, 3, width);
  own.wide = __shfl_sync(mask, thread + 0.25, 0, width);
  own.ballot = __ballot_sync(mask, thread & 1);
  own.any = __any_sync(mask, thread < 40);
  own.all = __all_sync(mask, thread < 40);
}

__global__ void halves_kernel(int* sums) {
  __shared__ int values[32];
  const int lane = static_cast<int>(threadIdx.x);
  const unsigned int mask = lane % 2 == 0 ? 0x55555555u : 0xaaaaaaaau;
  values[lane] = 1 + lane;
  for (int step = 2; step < 32; step *= 2) {
    __syncwarp(mask);
    const int other = values[lane ^ step];
    __syncwarp(mask);
    values[lane] += other;
  }
  sums[lane] = values[lane];
}

__global__ void count_kernel(const int* values, Counts* counts, int count) {
  __shared__ int by_value[4];
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < 4) by_value[thread] = 0;
  __syncthreads();
  const int i = static_cast<int>(blockIdx.x * blockDim.x) + thread;
  if (i < count) {
    atomicAdd(&by_value[values[i]], 1);
    atomicMax(&counts->largest, values[i]);
    atomicMin(&counts->smallest, values[i]);
    atomicOr(&counts->bits, 1u << values[i]);
    atomicXor(&counts->parity, 1u << values[i]);
    auto* chain = reinterpret_cast<unsigned long long*>(&counts->chain);
    unsigned long long seen = *chain;
    for (;;) {
      const unsigned long long old = atomicCAS(chain, seen, seen + 3);
      if (old == seen) break;
      seen = old;
    }
  }
  __syncthreads();
  if (thread < 4) atomicAdd(&counts->by_value[thread], by_value[thread]);
}

__global__ void number_kernel(int* numbers, unsigned int step) {
  const unsigned int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned int i = block * blockDim.x * blockDim.y * blockDim.z + thread;
  step += i;  // a thread's own copy
  __syncthreads();
  numbers[i] = static_cast<int>(step);
}

__global__ void divide_kernel(float a, float b, float* quotient) { *quotient = __fdiv_rn(a, b); }

__global__ void scale_and_add_kernel(int scale, int amount, int* sum) {
  *sum = scale * *sum + amount;
}

__global__ void early_return_kernel(int returning) {
  if (static_cast<int>(threadIdx.x) == returning) return;
  __syncthreads();
}

__global__ void barrier_in_a_branch_kernel() {
  if (threadIdx.y == 0) {
    __syncthreads();
  } else {
    __syncwarp();
    __syncwarp(0x0000ffffu);
  }
}

__global__ void lane_missing_kernel(int returning) {
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == returning) return;
  __shfl_xor_sync(kAllLanes, thread, 1);
}

__global__ void lanes_elsewhere_kernel() {
  if (threadIdx.x < 16) {
    __ballot_sync(kAllLanes, 1);
  } else {
    __any_sync(kAllLanes, 1);
  }
}

__global__ void masks_that_differ_kernel() {
  __syncwarp(threadIdx.x == 4 ? 0x0000ffffu : kAllLanes);
}

__global__ void foreign_lane_kernel() {
  if (threadIdx.x < 16) __shfl_sync(0x0000ffffu, 1.0f, 20);
}

__global__ void foreign_mask_kernel() { __syncwarp(0x0000ffffu); }

__global__ void shared_kernel() {
  __shared__ int values[10 << 10];
  values[threadIdx.x] = 1;
  GROUPEDMIXER_DYNAMIC_SHARED(int, more);
  more[threadIdx.x] = values[threadIdx.x];
}

__global__ void empty_kernel() {}

__global__ void race_kernel(int* values) {
  __shared__ int shared[64];
  const int thread = static_cast<int>(threadIdx.x);
  shared[thread] = 0;
  __syncthreads();
  shared[thread] = thread + 1;
  values[thread] = shared[(thread + 1) % 64];
}

template <int kCount>
__global__ void unwritten_kernel(float* statically, float* dynamically) {
  __shared__ float values[kCount];
  GROUPEDMIXER_DYNAMIC_SHARED(float, more);
  if (threadIdx.x == 0) more[0] = values[0] = 1.0f;
  __syncthreads();
  *statically = values[kCount - 1];
  *dynamically = more[kCount - 1];
}

__global__ void static_overrun_kernel(int index) {
  __shared__ int values[64];
  int* const first = values;
  first[index + static_cast<int>(threadIdx.x)] = 0;
}

__global__ void dynamic_overrun_kernel(int index) {
  GROUPEDMIXER_DYNAMIC_SHARED(int, values);
  values[index + static_cast<int>(threadIdx.x)] = 0;
}

__global__ void global_overrun_kernel(int* values, int index) {
  values[index + static_cast<int>(threadIdx.x)] = 0;
}

__global__ void misaligned_kernel(const float* values, float* sum) {
  const float4 four = *reinterpret_cast<const float4*>(values);
  *sum = four.x + four.y + four.z + four.w;
}

template <int kTile>
void launch_gemm_of(const float* a, const float* b, float* c, int m, int n, int k) {
  const dim3 grid(ceil_div(n, kTile), ceil_div(m, kTile));
  launch("gemm_kernel", gemm_kernel<kTile>, grid, dim3(kTile, kTile),
         2 * kTile * kTile * sizeof(float), nullptr, a, b, c, m, n, k);
}

}  // namespace

void launch_sum(const float* values, float* sums, int count) {
  launch("sum_kernel", sum_kernel, ceil_div(count, kSumThreads), kSumThreads, 0, nullptr, values,
         sums, count);
}

void launch_scan(const int* values, int* sums, int count) {
  constexpr int kThreads = 96;
  launch("scan_kernel", scan_kernel, ceil_div(count, kThreads), kThreads, 0, nullptr, values, sums,
         count);
}

void launch_transpose(const float* in, float* out, int rows, int columns) {
  const dim3 grid(ceil_div(columns, kTransposeTile), ceil_div(rows, kTransposeTile));
  launch("transpose_kernel", transpose_kernel, grid, dim3(kTransposeTile, kTransposeRows), 0,
         nullptr, in, out, rows, columns);
}

void launch_gemm(const float* a, const float* b, float* c, int m, int n, int k, int tile) {
  (tile == 8 ? launch_gemm_of<8> : launch_gemm_of<32>)(a, b, c, m, n, k);
}

void launch_lanes(Lanes* lanes, int width) {
  launch("lanes_kernel", lanes_kernel, 1, kLaneThreads, 0, nullptr, lanes, width);
}

void launch_halves(int* sums) { launch("halves_kernel", halves_kernel, 1, 32, 0, nullptr, sums); }

void launch_count(const int* values, Counts* counts, int count) {
  constexpr int kThreads = 64;
  launch("count_kernel", count_kernel, ceil_div(count, kThreads), kThreads, 0, nullptr, values,
         counts, count);
}

void launch_number(int* numbers) {
  launch("number_kernel", number_kernel, dim3(2, 3, 4), dim3(3, 2, 2), 0, nullptr, numbers, 1000u);
}

void launch_divide(float a, float b, float* quotient) {
  launch("divide_kernel", divide_kernel, 1, 1, 0, nullptr, a, b, quotient);
}

void launch_scale_and_add(int scale, int amount, int* sum, void* stream) {
  launch("scale_and_add_kernel", scale_and_add_kernel, 1, 1, 0, stream, scale, amount, sum);
}

void launch_early_return(int threads, int returning) {
  launch("early_return_kernel", early_return_kernel, 2, static_cast<unsigned int>(threads), 0,
         nullptr, returning);
}

void launch_barrier_in_a_branch() {
  launch("barrier_in_a_branch_kernel", barrier_in_a_branch_kernel, 1, dim3(32, 2), 0, nullptr);
}

void launch_lane_missing(int threads, int returning) {
  launch("lane_missing_kernel", lane_missing_kernel, 1, static_cast<unsigned int>(threads), 0,
         nullptr, returning);
}

void launch_lanes_elsewhere() {
  launch("lanes_elsewhere_kernel", lanes_elsewhere_kernel, 1, 32, 0, nullptr);
}

void launch_masks_that_differ() {
  launch("masks_that_differ_kernel", masks_that_differ_kernel, 1, 32, 0, nullptr);
}

void launch_foreign_lane() {
  launch("foreign_lane_kernel", foreign_lane_kernel, 1, 32, 0, nullptr);
}

void launch_foreign_mask() {
  launch("foreign_mask_kernel", foreign_mask_kernel, 1, 32, 0, nullptr);
}

void launch_shared(int dynamic_bytes) {
  launch("shared_kernel", shared_kernel, 1, 32, static_cast<std::size_t>(dynamic_bytes), nullptr);
}

void launch_block(int x, int y, int z) {
  const dim3 block(static_cast<unsigned int>(x), static_cast<unsigned int>(y),
                   static_cast<unsigned int>(z));
  launch("empty_kernel", empty_kernel, 1, block, 0, nullptr);
}

void launch_grid(int x, int y, int z) {
  const dim3 grid(static_cast<unsigned int>(x), static_cast<unsigned int>(y),
                  static_cast<unsigned int>(z));
  launch("empty_kernel", empty_kernel, grid, 1, 0, nullptr);
}

void launch_race(int* values) { launch("race_kernel", race_kernel, 1, 64, 0, nullptr, values); }

void launch_unwritten(float* statically, float* dynamically) {
  launch("unwritten_kernel", unwritten_kernel<5>, 1, 32, 5 * sizeof(float), nullptr, statically,
         dynamically);
}

void launch_static_overrun(int index) {
  launch("static_overrun_kernel", static_overrun_kernel, 1, 1, 0, nullptr, index);
}

void launch_dynamic_overrun(int index) {
  launch("dynamic_overrun_kernel", dynamic_overrun_kernel, 1, 1, 64 * sizeof(int), nullptr, index);
}

void launch_global_overrun(int* values, int index) {
  launch("global_overrun_kernel", global_overrun_kernel, 1, 1, 0, nullptr, values, index);
}

void launch_misaligned(const float* values, float* sum) {
  launch("misaligned_kernel", misaligned_kernel, 1, 1, 0, nullptr, values, sum);
}
