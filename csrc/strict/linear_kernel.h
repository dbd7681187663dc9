// SPDX-License-Identifier: MIT
//
// The matrix product of every layer on a GPU: docs/numerics.md, section 2, with the bits of
// gemm_isa.cpp. For .cu files. What differs between layers is where their inputs come from and
// where their outputs go:
//
//   A Source says what a layer multiplies: element k of row r.
//     struct Row      what is known of a row; in shared memory, so an offset rather than a pointer,
//                     which the compiler would not know to be one to global memory
//     struct Column   what is known of an element; in registers, made once for all rows that a
//                     thread loads
//     __device__ void open(int64_t row, int lane, Row& out) const;
//                     by the 16 threads of half a warp together, for a row that exists; lane 0
//                     writes `out`. Shuffles have a full mask and a width of 16
//     __device__ Column column(int64_t k) const;     0 <= k < depth
//     __device__ float at(const Row& row, const Column& column) const;
//   A Sink says where an output goes, with activation and residual.
//     __device__ void put(int64_t row, int64_t column, float value) const;
//                     row < rows, column < width; each once
//
// A block computes a tile of the output. Few rows give few tiles, so a block's threads are cut into
// parts that take the segments of K in turn, each part a whole segment of the whole tile; then the
// segments' sums are added from left to right. A part holds a chunk of its segment in shared memory
// and the next one in registers.

#pragma once

#include <cstdint>

#include "common/cuda_launch.h"
#include "strict/kernels.h"

namespace groupedmixer::strict {

struct LinearShape {
  int64_t rows, depth, width;
  const float* weight;  // packed: [ceil(width / 32), depth, 32]
  const float* bias;    // [width rounded up to 32]

  __host__ __device__ int64_t segments() const { return (depth + kSegment - 1) / kSegment; }
  __host__ __device__ int64_t panels() const { return (width + kPanel - 1) / kPanel; }
};

// A tile of Rows x Columns outputs by Parts parts of a block's threads.
template <int Rows, int Columns, int Parts, int Threads>
struct TileShape {
  static constexpr int kVector = 4;  // columns of a thread
  static constexpr int kChunk = 32;  // of a segment
  static constexpr int kChunks = kSegment / kChunk;
  static constexpr int kRows = Rows, kColumns = Columns, kParts = Parts, kThreads = Threads;
  static constexpr int kPartThreads = Threads / Parts;
  static constexpr int kAcross = Columns / kVector;  // threads side by side
  static constexpr int kDown = kPartThreads / kAcross;
  static constexpr int kTall = Rows / kDown;  // rows of a thread
  // Rows of a chunk of A lie side by side, so that a thread reads its rows as vectors.
  static constexpr int kAStride = Rows + kVector;
  static constexpr int kAFloats = kChunk * kAStride, kBFloats = kChunk * Columns;
  static constexpr int kChunkFloats = Parts * (kAFloats + kBFloats);
  static constexpr int kSumFloats = Parts * Rows * Columns;  // in the place of the chunks
  static constexpr int kFloats = kChunkFloats > kSumFloats ? kChunkFloats : kSumFloats;
  static constexpr int kARows = kPartThreads / kChunk;  // that a part loads at once
  static constexpr int kALoads = (Rows + kARows - 1) / kARows;
  static constexpr bool kAWhole = kALoads * kARows == Rows;
  static constexpr int kBLoads = kChunk * Columns / kVector / kPartThreads;
  static constexpr int kOwned = Rows * Columns / Threads;  // outputs whose total a thread keeps
  static_assert(kDown * kAcross == kPartThreads && kTall * kDown == Rows && kTall % kVector == 0);
  static_assert(kARows * kChunk == kPartThreads && kPartThreads * Parts == Threads);
  static_assert(kBLoads * kPartThreads * kVector == kChunk * Columns && Columns % kPanel == 0);
  static_assert(kOwned * Threads == Rows * Columns);
  static_assert(Rows % 2 == 0 && Threads % 32 == 0);  // whole warps open rows
};

// The tile of the rows from `top` on and of the panels panel_of(0), panel_of(1), ..; those outside
// of the layer give numbers without a meaning. By all threads of a block; each gets its outputs as
// emit(row of the tile, column of the tile, value).
template <typename S, typename Source, typename PanelOf, typename Emit>
__device__ __forceinline__ void multiply_tile(
    const LinearShape& p, const Source& source, int64_t top, const PanelOf& panel_of,
    float* memory,               // [S::kFloats] shared, aligned to 16 bytes
    typename Source::Row* rows,  // [S::kRows] shared
    const Emit& emit) {
  constexpr int kVector = S::kVector, kChunk = S::kChunk;
  const int thread = static_cast<int>(threadIdx.x);
  const int part = thread / S::kPartThreads, own = thread % S::kPartThreads;
  const int across = own % S::kAcross, down = own / S::kAcross;
  const int depth = static_cast<int>(p.depth), segments = static_cast<int>(p.segments());
  const int tall = static_cast<int>(p.rows - top < S::kRows ? p.rows - top : S::kRows);
  float* a_chunk = memory + part * (S::kAFloats + S::kBFloats);  // [kChunk, kAStride]
  float* b_chunk = a_chunk + S::kAFloats;                        // [kChunk, kColumns]
  // A thread loads weights of the columns that it computes.
  const int64_t panel = panel_of(across * kVector / static_cast<int>(kPanel));
  const int in_panel = across * kVector % static_cast<int>(kPanel);
  const bool has_panel = panel < p.panels();
  const float* b = p.weight + (panel * p.depth + down) * kPanel + in_panel;

  for (int row = thread / kLanes; row < S::kRows; row += S::kThreads / kLanes) {
    source.open(top + (row < tall ? row : 0), thread % kLanes, rows[row]);
  }
  __syncthreads();

  float a_next[S::kALoads];
  float4 b_next[S::kBLoads];
  // What lies outside of the matrices is 0 here, and not computed with or not stored.
  const auto fetch = [&](int begin) {
    const int k = begin + own % kChunk;
    const auto column = source.column(k < depth ? k : 0);
#pragma unroll
    for (int i = 0; i < S::kALoads; ++i) {
      const int row = own / kChunk + i * S::kARows;
      a_next[i] = row < tall && k < depth ? source.at(rows[row], column) : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < S::kBLoads; ++i) {
      const int row = begin + i * S::kDown;
      b_next[i] = has_panel && row + down < depth
                      ? *reinterpret_cast<const float4*>(b + static_cast<int64_t>(row) * kPanel)
                      : make_float4(0, 0, 0, 0);
    }
  };

  float total[S::kOwned];
  for (int round = 0; round < segments; round += S::kParts) {
    const int segment = round + part;
    const int begin = segment * kSegment;
    const int end = begin + kSegment < depth ? begin + kSegment : depth;
    float sum[S::kTall][kVector];
#pragma unroll
    for (int c = 0; c < kVector; ++c) {
      const bool starts = segment == 0 && has_panel;
      const float start = starts ? p.bias[panel * kPanel + in_panel + c] : 0.0f;
#pragma unroll
      for (int r = 0; r < S::kTall; ++r) sum[r][c] = start;
    }
    fetch(begin);
    for (int chunk = 0; chunk < S::kChunks; ++chunk) {
      const int first = begin + chunk * kChunk;
      __syncthreads();  // the chunk before, or the sums, are done with
#pragma unroll
      for (int i = 0; i < S::kALoads; ++i) {
        const int row = own / kChunk + i * S::kARows;
        if (S::kAWhole || row < S::kRows) a_chunk[own % kChunk * S::kAStride + row] = a_next[i];
      }
#pragma unroll
      for (int i = 0; i < S::kBLoads; ++i) {
        const int row = down + i * S::kDown;
        *reinterpret_cast<float4*>(b_chunk + row * S::kColumns + across * kVector) = b_next[i];
      }
      __syncthreads();
      if (chunk + 1 < S::kChunks) fetch(first + kChunk);
      const auto step = [&](int k) {
        float a[S::kTall];
#pragma unroll
        for (int r = 0; r < S::kTall; r += kVector) {
          const float4 four =
              *reinterpret_cast<const float4*>(a_chunk + k * S::kAStride + down * S::kTall + r);
          a[r] = four.x, a[r + 1] = four.y, a[r + 2] = four.z, a[r + 3] = four.w;
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
      const float* sums = memory + thread + i * S::kThreads;
      for (int j = 0; j < S::kParts && round + j < segments; ++j) {
        const float s = sums[j * S::kRows * S::kColumns];
        total[i] = round + j == 0 ? s : total[i] + s;
      }
    }
  }
#pragma unroll
  for (int i = 0; i < S::kOwned; ++i) {
    const int at = thread + i * S::kThreads;
    emit(at / S::kColumns, at % S::kColumns, total[i]);
  }
}

template <typename S, typename Source, typename Sink>
__global__ void __launch_bounds__(S::kThreads)
    linear_kernel(LinearShape p, Source source, Sink sink) {
  __align__(16) __shared__ float memory[S::kFloats];
  __shared__ typename Source::Row rows[S::kRows];
  constexpr int64_t kTilePanels = S::kColumns / kPanel;
  const int64_t top = static_cast<int64_t>(blockIdx.x) * S::kRows;
  const int64_t left = static_cast<int64_t>(blockIdx.y) * S::kColumns;
  const auto panel_of = [&](int panel) { return blockIdx.y * kTilePanels + panel; };
  multiply_tile<S>(p, source, top, panel_of, memory, rows, [&](int row, int column, float value) {
    if (top + row < p.rows && left + column < p.width) sink.put(top + row, left + column, value);
  });
}

// Enqueues the layer on `stream`, a cudaStream_t; no rows are nothing to do. Throws
// std::runtime_error, which begins with `name`, if that fails.
template <typename Source, typename Sink>
void launch_linear_kernel(const char* name, const LinearShape& shape, const Source& source,
                          const Sink& sink, void* stream) {
  if (shape.rows == 0) return;
  const auto launch_shape = [&](auto tile) {
    using S = decltype(tile);
    // Rows along x, of which there may be more than 2^16 tiles.
    const dim3 grid(static_cast<unsigned>((shape.rows + S::kRows - 1) / S::kRows),
                    static_cast<unsigned>((shape.width + S::kColumns - 1) / S::kColumns));
    launch(name, linear_kernel<S, Source, Sink>, grid, S::kThreads, 0, stream, shape, source, sink);
  };
  // Fewer of the larger tiles would leave most of a GPU's 100 and more multiprocessors idle.
  constexpr int64_t kFewTiles = 64;
  const int64_t tiles = (shape.rows + 31) / 32 * ((shape.width + 63) / 64);
  const bool is_deep = shape.segments() >= 5;
  if (shape.rows >= 4096) {
    launch_shape(TileShape<64, 64, 1, 256>{});
  } else if (tiles <= kFewTiles) {
    if (is_deep) {
      launch_shape(TileShape<16, 32, 4, 128>{});
    } else {
      launch_shape(TileShape<16, 32, 2, 64>{});
    }
  } else if (is_deep) {
    launch_shape(TileShape<32, 32, 4, 256>{});
  } else {
    launch_shape(TileShape<32, 64, 2, 256>{});
  }
}

}  // namespace groupedmixer::strict
