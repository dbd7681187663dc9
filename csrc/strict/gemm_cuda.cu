// SPDX-License-Identifier: MIT
//
// Linear layers and layer norm on a GPU: docs/numerics.md, sections 2 to 4, with the bits of
// gemm_isa.cpp.
//
// A block computes a tile of the output. Few rows give few tiles, so a block's threads are cut into
// parts that take the segments of K in turn, each part a whole segment of the whole tile; then the
// segments' sums are added from left to right. A part holds a chunk of its segment in shared memory
// and the next one in registers.

#include "common/cuda_launch.h"
#include "strict/cuda.h"

namespace groupedmixer::strict {
namespace {

constexpr int kThreads = 256;
constexpr int kChunk = 32;  // of a segment
constexpr int kChunks = kSegment / kChunk;
constexpr int kVector = 4;  // columns of a thread

// ---- layer norm ---------------------------------------------------------------------------------

struct Statistics {
  float mean, scale;
};

// The tree of a lane sum; all threads of a half warp take part and get the sum.
__device__ float add_lanes(float sum) {
  for (int half = kLanes / 2; half > 0; half /= 2) {
    sum = sum + __shfl_down_sync(~0u, sum, half, kLanes);
  }
  return __shfl_sync(~0u, sum, 0, kLanes);
}

// Of a row, by half a warp: lane j of the sum is thread j. All threads of the warp call it.
__device__ Statistics statistics(const float* x,  // [width]
                                 int64_t width) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const float count = static_cast<float>(width);
  float sum = x[lane];
  for (int64_t i = lane + kLanes; i < width; i += kLanes) sum = sum + x[i];
  const float mean = add_lanes(sum) / count;
  const float first = x[lane] - mean;
  float squares = first * first;
  for (int64_t i = lane + kLanes; i < width; i += kLanes) {
    const float centred = x[i] - mean;
    squares = fused(centred, centred, squares);
  }
  const float variance = add_lanes(squares) / count;
  return {mean, 1.0f / square_root(variance + kNormEpsilon)};
}

__device__ float normalise(float x, Statistics s, float weight, float bias) {
  const float scaled = (x - s.mean) * s.scale;
  return fused(scaled, weight, bias);
}

__global__ void __launch_bounds__(kThreads) norm_kernel(NormParams p) {
  constexpr int kRows = kThreads / kLanes;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.x / kLanes;
  const bool exists = row < p.rows;
  const float* x = p.x + (exists ? row : 0) * p.x_stride;
  const Statistics s = statistics(x, p.width);
  if (!exists) return;
  float* out = p.out + row * p.out_stride;
  for (int64_t i = threadIdx.x % kLanes; i < p.width; i += kLanes) {
    out[i] = normalise(x[i], s, p.weight[i], p.bias[i]);
  }
}

// ---- linear layers ------------------------------------------------------------------------------

__device__ float activate(Activation activation, float x) {
  if (activation == Activation::kGelu) return gelu(x);
  if (activation == Activation::kLeakyRelu) return leaky_relu(x);
  return x;
}

// A tile of Rows x Columns outputs by Parts parts of the block's threads.
template <int Rows, int Columns, int Parts>
struct Shape {
  static constexpr int kRows = Rows, kColumns = Columns, kParts = Parts;
  static constexpr int kPartThreads = kThreads / Parts;
  static constexpr int kAcross = Columns / kVector;  // threads side by side
  static constexpr int kDown = kPartThreads / kAcross;
  static constexpr int kTall = Rows / kDown;  // rows of a thread
  // Rows of a chunk of A lie side by side, so that a thread reads its rows as vectors.
  static constexpr int kAStride = Rows + kVector;
  static constexpr int kAFloats = kChunk * kAStride, kBFloats = kChunk * Columns;
  static constexpr int kChunkFloats = Parts * (kAFloats + kBFloats);
  static constexpr int kSumFloats = Parts * Rows * Columns;  // in the place of the chunks
  static constexpr int kFloats = kChunkFloats > kSumFloats ? kChunkFloats : kSumFloats;
  static constexpr int kALoads = Rows * kChunk / kPartThreads;
  static constexpr int kBLoads = kChunk * Columns / kVector / kPartThreads;
  static constexpr int kOwned = Rows * Columns / kThreads;  // outputs whose total a thread keeps
  static_assert(kDown * kAcross == kPartThreads && kTall * kDown == Rows && kTall % kVector == 0);
  static_assert(kALoads * kPartThreads == Rows * kChunk && kPartThreads % kChunk == 0);
  static_assert(kBLoads * kPartThreads * kVector == kChunk * Columns && Columns % kPanel == 0);
  static_assert(kOwned * kThreads == Rows * Columns);
};

template <typename S>
__global__ void __launch_bounds__(kThreads) linear_kernel(LinearParams p) {
  __align__(16) __shared__ float memory[S::kFloats];
  __shared__ Statistics norms[S::kRows];
  const int thread = static_cast<int>(threadIdx.x);
  const int part = thread / S::kPartThreads, own = thread % S::kPartThreads;
  const int across = own % S::kAcross, down = own / S::kAcross;
  const int64_t top = static_cast<int64_t>(blockIdx.y) * S::kRows;
  const int64_t left = static_cast<int64_t>(blockIdx.x) * S::kColumns;
  const int64_t panels = (p.width + kPanel - 1) / kPanel;
  float* a_chunk = memory + part * (S::kAFloats + S::kBFloats);  // [kChunk, kAStride]
  float* b_chunk = a_chunk + S::kAFloats;                        // [kChunk, kColumns]

  if (p.norm_weight != nullptr) {
    for (int row = thread / kLanes; row < S::kRows; row += kThreads / kLanes) {
      const int64_t at = top + row < p.rows ? top + row : 0;
      const Statistics s = statistics(p.x + at * p.x_stride, p.depth);
      if (thread % kLanes == 0) norms[row] = s;
    }
    __syncthreads();
  }

  float a_next[S::kALoads];
  float4 b_next[S::kBLoads];
  // What lies outside of the matrices is 0 here, and not computed with or not stored.
  const auto fetch = [&](int64_t begin, int64_t end) {
    const int64_t k = begin + own % kChunk;
    const float weight = p.norm_weight != nullptr && k < end ? p.norm_weight[k] : 0.0f;
    const float bias = p.norm_weight != nullptr && k < end ? p.norm_bias[k] : 0.0f;
#pragma unroll
    for (int i = 0; i < S::kALoads; ++i) {
      const int row = own / kChunk + i * (S::kPartThreads / kChunk);
      const bool exists = top + row < p.rows && k < end;
      a_next[i] = exists ? p.x[(top + row) * p.x_stride + k] : 0.0f;
      if (p.norm_weight != nullptr) a_next[i] = normalise(a_next[i], norms[row], weight, bias);
    }
#pragma unroll
    for (int i = 0; i < S::kBLoads; ++i) {
      const int at = (own + i * S::kPartThreads) * kVector;
      const int64_t row = begin + at / S::kColumns, column = left + at % S::kColumns;
      const int64_t panel = column / kPanel;
      const bool exists = row < end && panel < panels;
      const float* b = p.weight + (panel * p.depth + row) * kPanel + column % kPanel;
      b_next[i] = exists ? *reinterpret_cast<const float4*>(b) : make_float4(0, 0, 0, 0);
    }
  };

  float total[S::kOwned];
  const int64_t segments = (p.depth + kSegment - 1) / kSegment;
  for (int64_t round = 0; round < segments; round += S::kParts) {
    const int64_t segment = round + part;
    const int64_t begin = segment * kSegment;
    const int64_t end = begin + kSegment < p.depth ? begin + kSegment : p.depth;
    float sum[S::kTall][kVector];
#pragma unroll
    for (int c = 0; c < kVector; ++c) {
      const int64_t column = left + across * kVector + c;
      const float start = segment == 0 && column < panels * kPanel ? p.bias[column] : 0.0f;
#pragma unroll
      for (int r = 0; r < S::kTall; ++r) sum[r][c] = start;
    }
    fetch(begin, end);
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const int64_t first = begin + chunk * kChunk;
      __syncthreads();  // the chunk before, or the sums, are done with
#pragma unroll
      for (int i = 0; i < S::kALoads; ++i) {
        const int row = own / kChunk + i * (S::kPartThreads / kChunk);
        a_chunk[own % kChunk * S::kAStride + row] = a_next[i];
      }
#pragma unroll
      for (int i = 0; i < S::kBLoads; ++i) {
        *reinterpret_cast<float4*>(b_chunk + (own + i * S::kPartThreads) * kVector) = b_next[i];
      }
      __syncthreads();
      if (chunk + 1 < kChunks) fetch(first + kChunk, end);
      const auto step = [&](int k) {
        float a[S::kTall];
#pragma unroll
        for (int r = 0; r < S::kTall; r += kVector) {
          const float4 rows =
              *reinterpret_cast<const float4*>(a_chunk + k * S::kAStride + down * S::kTall + r);
          a[r] = rows.x, a[r + 1] = rows.y, a[r + 2] = rows.z, a[r + 3] = rows.w;
        }
        const float4 b =
            *reinterpret_cast<const float4*>(b_chunk + k * S::kColumns + across * kVector);
#pragma unroll
        for (int r = 0; r < S::kTall; ++r) {
          sum[r][0] = fused(a[r], b.x, sum[r][0]);
          sum[r][1] = fused(a[r], b.y, sum[r][1]);
          sum[r][2] = fused(a[r], b.z, sum[r][2]);
          sum[r][3] = fused(a[r], b.w, sum[r][3]);
        }
      };
      if (first + kChunk <= end) {
#pragma unroll
        for (int k = 0; k < kChunk; ++k) step(k);
      } else {
        for (int k = 0; first + k < end; ++k) step(k);
      }
    }
    __syncthreads();  // all are done with the chunks
#pragma unroll
    for (int r = 0; r < S::kTall; ++r) {
      float* sums = memory + (part * S::kRows + down * S::kTall + r) * S::kColumns;
      *reinterpret_cast<float4*>(sums + across * kVector) =
          make_float4(sum[r][0], sum[r][1], sum[r][2], sum[r][3]);
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < S::kOwned; ++i) {
      const float* sums = memory + thread + i * kThreads;
      for (int j = 0; j < S::kParts && round + j < segments; ++j) {
        const float s = sums[j * S::kRows * S::kColumns];
        total[i] = round + j == 0 ? s : total[i] + s;
      }
    }
  }

#pragma unroll
  for (int i = 0; i < S::kOwned; ++i) {
    const int at = thread + i * kThreads;
    const int64_t row = top + at / S::kColumns, column = left + at % S::kColumns;
    if (row >= p.rows || column >= p.width) continue;
    float value = activate(p.activation, total[i]);
    if (p.residual != nullptr) value = p.residual[row * p.residual_stride + column] + value;
    p.out[row * p.out_stride + column] = value;
  }
}

template <typename S>
void launch_shape(const LinearParams& p, void* stream) {
  const dim3 grid(static_cast<unsigned>((p.width + S::kColumns - 1) / S::kColumns),
                  static_cast<unsigned>((p.rows + S::kRows - 1) / S::kRows));
  launch("linear_kernel", linear_kernel<S>, grid, kThreads, 0, stream, p);
}

}  // namespace

void launch_norm(const NormParams& p, void* stream) {
  if (p.rows == 0) return;
  constexpr int64_t kRows = kThreads / kLanes;
  const dim3 grid(static_cast<unsigned>((p.rows + kRows - 1) / kRows));
  launch("norm_kernel", norm_kernel, grid, kThreads, 0, stream, p);
}

void launch_linear(const LinearParams& p, void* stream) {
  if (p.rows == 0) return;
  const int64_t segments = (p.depth + kSegment - 1) / kSegment;
  if (p.rows >= 4096) {
    launch_shape<Shape<64, 64, 1>>(p, stream);
  } else if (segments >= 5) {
    launch_shape<Shape<32, 32, 4>>(p, stream);
  } else {
    launch_shape<Shape<32, 64, 2>>(p, stream);
  }
}

}  // namespace groupedmixer::strict
