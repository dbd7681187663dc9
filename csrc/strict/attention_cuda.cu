// SPDX-License-Identifier: MIT
//
// The two attentions of a block on a GPU: docs/numerics.md, section 3, with the bits of
// attention_isa.cpp.

#include <cmath>

#include "common/cuda_launch.h"
#include "strict/cuda.h"
#include "strict/kv_cache.h"

namespace groupedmixer::strict {
namespace {

constexpr int kThreads = 128;

// ---- windows ------------------------------------------------------------------------------------

constexpr int kTokens = static_cast<int>(kWindowTokens);
constexpr int kRowFloats = kHeadDim + 1;  // odd: threads that read a column hit different banks
constexpr int kScoreFloats = kTokens + 1;
constexpr int kSide = 2 * kWindow - 1;

struct Cell {
  int top, left, rows, columns;

  __device__ int tokens() const { return rows * columns; }
};

// Cells of an axis begin at 0 and then every 8 positions, counted from 4 on if shifted.
__device__ void cell_on_axis(int64_t index, int64_t length, bool shifted, int& begin, int& size) {
  const int64_t offset = shifted ? kWindow / 2 : 0;
  const int64_t from =
      shifted ? (index == 0 ? 0 : offset + (index - 1) * kWindow) : index * kWindow;
  const int64_t until = shifted ? offset + index * kWindow : from + kWindow;
  begin = static_cast<int>(from);
  size = static_cast<int>((until < length ? until : length) - from);
}

int64_t cells_on_axis(int64_t length, bool shifted) {
  if (!shifted) return (length + kWindow - 1) / kWindow;
  const int64_t offset = kWindow / 2;
  return length <= offset ? 1 : 1 + (length - offset + kWindow - 1) / kWindow;
}

// One cell and one head a block.
__global__ void __launch_bounds__(kThreads) window_attention_kernel(WindowLayerParams p) {
  __shared__ float q[kTokens * kRowFloats];  // [tokens, kRowFloats]
  __shared__ float k[kTokens * kRowFloats];
  __shared__ float v[kTokens * kRowFloats];
  __shared__ float e[kTokens * kScoreFloats];  // scores, then their exponentials, [queries, keys]
  __shared__ float totals[kTokens];
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t head = blockIdx.z;
  Cell cell;
  cell_on_axis(blockIdx.y, p.height, p.shifted, cell.top, cell.rows);
  cell_on_axis(blockIdx.x, p.width, p.shifted, cell.left, cell.columns);
  const int tokens = cell.tokens();
  const int64_t width = p.heads * kHeadDim;
  const auto position = [&](int token) {
    return (cell.top + token / cell.columns) * p.width + cell.left + token % cell.columns;
  };
  for (int i = thread; i < tokens * kHeadDim; i += kThreads) {
    const int token = i / kHeadDim, d = i % kHeadDim;
    const float* from = p.qkv + position(token) * 3 * width + head * kHeadDim + d;
    q[token * kRowFloats + d] = from[0];
    k[token * kRowFloats + d] = from[width];
    v[token * kRowFloats + d] = from[2 * width];
  }
  __syncthreads();

  // A thread's scores: kTall queries next to each other, every kAcross-th key.
  constexpr int kTall = 4, kAcross = 8, kKeys = kTokens / kAcross;
  static_assert(kTall * kThreads / kAcross == kTokens);
  {
    const int first_query = thread / kAcross * kTall, first_key = thread % kAcross;
    float sum[kTall][kKeys] = {};
    for (int d = 0; d < kHeadDim; ++d) {
      float query[kTall];
#pragma unroll
      for (int i = 0; i < kTall; ++i) {
        query[i] = first_query + i < tokens ? q[(first_query + i) * kRowFloats + d] : 0.0f;
      }
#pragma unroll
      for (int j = 0; j < kKeys; ++j) {
        const int key = first_key + j * kAcross;
        const float value = key < tokens ? k[key * kRowFloats + d] : 0.0f;
#pragma unroll
        for (int i = 0; i < kTall; ++i) sum[i][j] = fused(query[i], value, sum[i][j]);
      }
    }
    const float* bias = p.relative_bias + head * kSide * kSide;
#pragma unroll
    for (int i = 0; i < kTall; ++i) {
      const int query = first_query + i;
      const int row = query / cell.columns, column = query % cell.columns;
#pragma unroll
      for (int j = 0; j < kKeys; ++j) {
        const int key = first_key + j * kAcross;
        if (query >= tokens || key >= tokens) continue;
        const int down = row - key / cell.columns + kWindow - 1;
        const int right = column - key % cell.columns + kWindow - 1;
        e[query * kScoreFloats + key] =
            fused(sum[i][j], kAttentionScale, bias[down * kSide + right]);
      }
    }
  }
  __syncthreads();

  // Half a warp a query, thread j is lane j of the sum.
  for (int first = 0; first < kTokens; first += kThreads / kLanes) {
    const int query = first + thread / kLanes, lane = thread % kLanes;
    const bool exists = query < tokens;
    float* scores = e + query * kScoreFloats;
    const bool has_key = exists && lane < tokens;
    float largest = has_key ? scores[lane] : -INFINITY;
    for (int key = lane + kLanes; exists && key < tokens; key += kLanes) {
      largest = larger(scores[key], largest);
    }
    for (int half = kLanes / 2; half > 0; half /= 2) {
      largest = larger(__shfl_xor_sync(~0u, largest, half, kLanes), largest);
    }
    float sum = 0.0f;
    for (int key = lane; exists && key < tokens; key += kLanes) {
      const float weight = exponential(scores[key] - largest);
      scores[key] = weight;
      sum = key == lane ? weight : sum + weight;
    }
    for (int half = kLanes / 2; half > 0; half /= 2) {
      sum = sum + __shfl_down_sync(~0u, sum, half, kLanes);
    }
    if (exists && lane == 0) totals[query] = sum;
  }
  __syncthreads();

  // A thread's outputs: kTall queries next to each other, every kAcross-th channel.
  constexpr int kChannels = kHeadDim / kAcross;
  const int first_query = thread / kAcross * kTall, first_channel = thread % kAcross;
  float sum[kTall][kChannels] = {};
  for (int key = 0; key < tokens; ++key) {
    float weight[kTall];
#pragma unroll
    for (int i = 0; i < kTall; ++i) {
      weight[i] = first_query + i < tokens ? e[(first_query + i) * kScoreFloats + key] : 0.0f;
    }
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      const float value = v[key * kRowFloats + first_channel + c * kAcross];
#pragma unroll
      for (int i = 0; i < kTall; ++i) sum[i][c] = fused(weight[i], value, sum[i][c]);
    }
  }
#pragma unroll
  for (int i = 0; i < kTall; ++i) {
    const int query = first_query + i;
    if (query >= tokens) continue;
    float* out = p.out + position(query) * width + head * kHeadDim;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      out[first_channel + c * kAcross] = sum[i][c] / totals[query];
    }
  }
}

// ---- the context cache --------------------------------------------------------------------------

constexpr int kBlockTokens = static_cast<int>(kTokenBlock);
constexpr int kWorkers = kThreads / kBlockTokens;  // threads of a token

// A head of a block of 16 tokens; thread (token, worker).
__global__ void __launch_bounds__(kThreads) append_attention_kernel(AppendAttentionParams p) {
  GROUPEDMIXER_DYNAMIC_SHARED(float, e);  // [step + 1, kBlockTokens]
  __shared__ float q[kHeadDim * kBlockTokens];
  __shared__ float lanes[kWorkers * kBlockTokens];
  const int thread = static_cast<int>(threadIdx.x);
  const int token = thread % kBlockTokens, worker = thread / kBlockTokens;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kBlockTokens, head = blockIdx.y;
  const int64_t width = p.heads * kHeadDim;
  const KvCache layout{p.heads, p.capacity};
  uint16_t* keys = p.cache + blockIdx.x * layout.block_size() + head * layout.head_size();
  uint16_t* values = keys + layout.values_offset();
  for (int i = thread; i < kHeadDim * kBlockTokens; i += kThreads) {
    const int d = i % kHeadDim, t = i / kHeadDim;
    const bool exists = first + t < p.tokens;
    const float* from = p.qkv + (exists ? first + t : 0) * p.qkv_stride + head * kHeadDim + d;
    const int64_t slot = p.step * KvCache::kStep + d * kBlockTokens + t;
    q[d * kBlockTokens + t] = exists ? from[0] : 0.0f;
    keys[slot] = to_half(clamp_to_half(exists ? from[width] : 0.0f));
    values[slot] = to_half(clamp_to_half(exists ? from[2 * width] : 0.0f));
  }
  __syncthreads();

  const int64_t steps = p.step + 1;
  const float* bias = p.step_bias + (head * p.capacity + p.step) * p.capacity;
  float largest = -INFINITY;
  for (int64_t s = worker; s < steps; s += kWorkers) {
    float sum = 0.0f;
#pragma unroll 8
    for (int d = 0; d < kHeadDim; ++d) {
      const float key = from_half(keys[s * KvCache::kStep + d * kBlockTokens + token]);
      sum = fused(q[d * kBlockTokens + token], key, sum);
    }
    const float score = fused(sum, kAttentionScale, bias[s]);
    e[s * kBlockTokens + token] = score;
    largest = larger(score, largest);
  }
  // Over the workers of a token, in a tree through shared memory. All workers get the result.
  const auto combine = [&](float value, const auto& join) {
    lanes[worker * kBlockTokens + token] = value;
    __syncthreads();
    for (int half = kWorkers / 2; half > 0; half /= 2) {
      if (worker < half) {
        float& low = lanes[worker * kBlockTokens + token];
        low = join(low, lanes[(worker + half) * kBlockTokens + token]);
      }
      __syncthreads();
    }
    const float result = lanes[token];
    __syncthreads();
    return result;
  };
  largest = combine(largest, [](float a, float b) { return larger(b, a); });

  // Worker w sums the lanes w and w + 8 of the lane sum.
  static_assert(2 * kWorkers == kLanes);
  float lane[2] = {};
  for (int half = 0; half < 2; ++half) {
    const int64_t begin = worker + half * kWorkers;
    for (int64_t s = begin; s < steps; s += kLanes) {
      const float weight = exponential(e[s * kBlockTokens + token] - largest);
      e[s * kBlockTokens + token] = weight;
      lane[half] = s == begin ? weight : lane[half] + weight;
    }
  }
  const float total = combine(lane[0] + lane[1], [](float a, float b) { return a + b; });

  if (first + token >= p.tokens) return;
  float* out = p.out + (first + token) * p.out_stride + head * kHeadDim;
  constexpr int kChannels = kHeadDim / kWorkers;
  float whole[kChannels];
  for (int64_t begin = 0; begin < steps; begin += kSegment) {
    const int64_t end = begin + kSegment < steps ? begin + kSegment : steps;
    float sum[kChannels] = {};
    for (int64_t s = begin; s < end; ++s) {
      const float weight = e[s * kBlockTokens + token];
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        const int d = worker * kChannels + c;
        const float value = from_half(values[s * KvCache::kStep + d * kBlockTokens + token]);
        sum[c] = fused(weight, value, sum[c]);
      }
    }
#pragma unroll
    for (int c = 0; c < kChannels; ++c) whole[c] = begin == 0 ? sum[c] : whole[c] + sum[c];
  }
#pragma unroll
  for (int c = 0; c < kChannels; ++c) out[worker * kChannels + c] = whole[c] / total;
}

}  // namespace

void launch_window_attention(const WindowLayerParams& p, void* stream) {
  if (p.height == 0 || p.width == 0) return;
  const dim3 grid(static_cast<unsigned>(cells_on_axis(p.width, p.shifted)),
                  static_cast<unsigned>(cells_on_axis(p.height, p.shifted)),
                  static_cast<unsigned>(p.heads));
  launch("window_attention_kernel", window_attention_kernel, grid, kThreads, 0, stream, p);
}

void launch_append_attention(const AppendAttentionParams& p, void* stream) {
  if (p.tokens == 0) return;
  const dim3 grid(static_cast<unsigned>((p.tokens + kBlockTokens - 1) / kBlockTokens),
                  static_cast<unsigned>(p.heads));
  const size_t shared = static_cast<size_t>(p.step + 1) * kBlockTokens * sizeof(float);
  launch("append_attention_kernel", append_attention_kernel, grid, kThreads, shared, stream, p);
}

}  // namespace groupedmixer::strict
