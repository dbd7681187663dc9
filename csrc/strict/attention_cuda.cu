// SPDX-License-Identifier: MIT
//
// The two attentions of a block on a GPU: docs/numerics.md, section 3, with the bits of
// attention_isa.cpp.

#include <algorithm>
#include <cmath>

#include "common/cuda_launch.h"
#include "strict/cuda.h"
#include "strict/kv_cache.h"
#include "strict/linear_kernel.h"
#include "strict/linear_rows.h"

namespace groupedmixer::strict {
namespace {

// ---- windows ------------------------------------------------------------------------------------

constexpr int kWindowThreads = 128;
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

__host__ __device__ int64_t cells_on_axis(int64_t length, bool shifted) {
  if (!shifted) return (length + kWindow - 1) / kWindow;
  const int64_t offset = kWindow / 2;
  return length <= offset ? 1 : 1 + (length - offset + kWindow - 1) / kWindow;
}

__host__ __device__ int64_t cells_of(const TileSpan& tile, bool shifted) {
  return cells_on_axis(tile.height, shifted) * cells_on_axis(tile.width, shifted);
}

// One cell and one head a block.
__global__ void __launch_bounds__(kWindowThreads) window_attention_kernel(WindowLayerParams p) {
  __shared__ float q[kTokens * kRowFloats];  // [tokens, kRowFloats]
  __shared__ float k[kTokens * kRowFloats];
  __shared__ float v[kTokens * kRowFloats];
  __shared__ float e[kTokens * kScoreFloats];  // scores, then their exponentials, [queries, keys]
  __shared__ float totals[kTokens];
  __shared__ float bias[kSide * kSide];
  const int thread = static_cast<int>(threadIdx.x);
  const TileSpan tile = p.tiles.tiles[blockIdx.y];
  if (blockIdx.x >= cells_of(tile, p.shifted)) return;
  const int64_t head = blockIdx.z;
  const int64_t across = cells_on_axis(tile.width, p.shifted);
  Cell cell;
  cell_on_axis(blockIdx.x / across, tile.height, p.shifted, cell.top, cell.rows);
  cell_on_axis(blockIdx.x % across, tile.width, p.shifted, cell.left, cell.columns);
  const int tokens = cell.tokens();
  const int64_t width = p.heads * kHeadDim;
  const auto position = [&](int token) {
    const int row = cell.top + token / cell.columns, column = cell.left + token % cell.columns;
    return static_cast<int64_t>(tile.first + row * tile.width + column);
  };
  const float* head_bias = p.relative_bias + head * kSide * kSide;
  for (int i = thread; i < kSide * kSide; i += kWindowThreads) bias[i] = head_bias[i];
  // Loads of a batch are under way together. Tokens that do not exist get another one's numbers.
  constexpr int kRound = kWindowThreads / kHeadDim,
                kBatch = 8;  // tokens at once; rounds of a batch
  const int d = thread % kHeadDim;
  for (int first = thread / kHeadDim; first < tokens; first += kBatch * kRound) {
    float in[kBatch][3];
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const int token = first + j * kRound;
      const float* from =
          p.qkv + position(token < tokens ? token : 0) * 3 * width + head * kHeadDim + d;
      in[j][0] = from[0], in[j][1] = from[width], in[j][2] = from[2 * width];
    }
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const int at = (first + j * kRound) * kRowFloats + d;
      q[at] = in[j][0], k[at] = in[j][1], v[at] = in[j][2];
    }
  }
  __syncthreads();

  // A thread's scores: kTall queries next to each other, every kAcross-th key.
  constexpr int kTall = 4, kAcross = 8, kKeys = kTokens / kAcross;
  static_assert(kTall * kWindowThreads / kAcross == kTokens);
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
#pragma unroll
    for (int i = 0; i < kTall; ++i) {
      const int query = first_query + i;
      const int row = query / cell.columns, column = query % cell.columns;
#pragma unroll
      for (int j = 0; j < kKeys; ++j) {
        const int key = first_key + j * kAcross;
        // Of those that do not exist, any number will do.
        const bool exists = query < tokens && key < tokens;
        const int down = row - key / cell.columns + kWindow - 1;
        const int right = column - key % cell.columns + kWindow - 1;
        e[query * kScoreFloats + key] =
            fused(sum[i][j], kAttentionScale, bias[exists ? down * kSide + right : 0]);
      }
    }
  }
  __syncthreads();

  // Half a warp a query, thread j is lane j of the sum.
  for (int first = 0; first < kTokens; first += kWindowThreads / kLanes) {
    const int query = first + thread / kLanes, lane = thread % kLanes;
    const bool exists = query < tokens;
    float* scores = e + query * kScoreFloats;
    constexpr int kMine = kTokens / kLanes;  // keys of a lane
    float mine[kMine];
#pragma unroll
    for (int j = 0; j < kMine; ++j) {
      mine[j] = lane + j * kLanes < tokens ? scores[lane + j * kLanes] : -INFINITY;
    }
    float largest = mine[0];
#pragma unroll
    for (int j = 1; j < kMine; ++j) largest = larger(mine[j], largest);
    for (int half = kLanes / 2; half > 0; half /= 2) {
      largest = larger(__shfl_xor_sync(~0u, largest, half, kLanes), largest);
    }
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < kMine; ++j) {
      const float weight = exponential(mine[j] - largest);
      if (lane + j * kLanes >= tokens) continue;
      scores[lane + j * kLanes] = weight;
      sum = j == 0 ? weight : sum + weight;
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
constexpr int kCacheThreads = 192;
constexpr int kWorkers = kCacheThreads / kBlockTokens;  // threads of a token
static_assert(kWorkers <= kLanes);

// q, k and v of a head of a block of 16 tokens, in shared memory: [3 * 32, kStagedStride].
constexpr int kStagedStride = kBlockTokens + 1;  // odd, for threads that write a row
constexpr int kStagedFloats = 3 * kHeadDim * kStagedStride;

// The tree of a lane sum, in one thread.
template <int Half = kLanes / 2>
__device__ float add_tree(float (&lanes)[kLanes]) {
  if constexpr (Half == 0) {
    return lanes[0];
  } else {
#pragma unroll
    for (int lane = 0; lane < Half; ++lane) lanes[lane] = lanes[lane] + lanes[lane + Half];
    return add_tree<Half / 2>(lanes);
  }
}

// Cross-group attention of the staged q over the cache, behind the staged k and v, which it
// appends. Head blockIdx.y of block blockIdx.x; thread (token, worker).
__device__ void append_and_attend(const AppendAttentionParams& p, const float* staged,
                                  float* e) {  // [step + 1, kBlockTokens] shared
  __shared__ float partial[kLanes * kBlockTokens];
  const int thread = static_cast<int>(threadIdx.x);
  const int token = thread % kBlockTokens, worker = thread / kBlockTokens;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kBlockTokens, head = blockIdx.y;
  const bool exists = first + token < p.tokens;
  const KvCache layout{p.heads, p.capacity};
  uint16_t* keys = p.cache + blockIdx.x * layout.block_size() + head * layout.head_size();
  uint16_t* values = keys + layout.values_offset();
  for (int d = worker; d < kHeadDim; d += kWorkers) {
    const float* column = staged + d * kStagedStride + token;
    const int64_t slot = p.step * KvCache::kStep + d * kBlockTokens + token;
    const float key = exists ? column[kHeadDim * kStagedStride] : 0.0f;
    const float value = exists ? column[2 * kHeadDim * kStagedStride] : 0.0f;
    keys[slot] = to_half(clamp_to_half(key));
    values[slot] = to_half(clamp_to_half(value));
  }
  __syncthreads();

  const int64_t steps = p.step + 1;
  const float* bias = p.step_bias + (head * p.capacity + p.step) * p.capacity;
  float largest = -INFINITY;
  for (int64_t s = worker; s < steps; s += kWorkers) {
    float sum = 0.0f;
    const float start = bias[s];
#pragma unroll
    for (int d = 0; d < kHeadDim; ++d) {
      const float key = from_half(keys[s * KvCache::kStep + d * kBlockTokens + token]);
      sum = fused(staged[d * kStagedStride + token], key, sum);
    }
    const float score = fused(sum, kAttentionScale, start);
    e[s * kBlockTokens + token] = score;
    largest = larger(score, largest);
  }
  partial[worker * kBlockTokens + token] = largest;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < kWorkers; ++w) largest = larger(partial[w * kBlockTokens + token], largest);
  __syncthreads();

  for (int lane = worker; lane < kLanes; lane += kWorkers) {
    float sum = 0.0f;
    for (int64_t s = lane; s < steps; s += kLanes) {
      const float weight = exponential(e[s * kBlockTokens + token] - largest);
      e[s * kBlockTokens + token] = weight;
      sum = s == lane ? weight : sum + weight;
    }
    partial[lane * kBlockTokens + token] = sum;
  }
  __syncthreads();
  if (!exists) return;
  float lanes[kLanes];
#pragma unroll
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = partial[lane * kBlockTokens + token];
  const float total = add_tree(lanes);

  // The last of a worker's channels may be none.
  float* out = p.out + (first + token) * p.out_stride + head * kHeadDim;
  constexpr int kChannels = (kHeadDim + kWorkers - 1) / kWorkers;
  float whole[kChannels];
  for (int64_t begin = 0; begin < steps; begin += kSegment) {
    const int64_t end = begin + kSegment < steps ? begin + kSegment : steps;
    float sum[kChannels] = {};
    constexpr int kBatch = 8;  // steps whose loads are under way together
    for (int64_t first_step = begin; first_step < end; first_step += kBatch) {
      uint16_t batch[kBatch][kChannels];
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
#pragma unroll
        for (int c = 0; c < kChannels; ++c) {
          const int64_t s = first_step + j;
          const int d = worker + c * kWorkers;
          const bool needed = s < end && d < kHeadDim;
          batch[j][c] = needed ? values[s * KvCache::kStep + d * kBlockTokens + token] : 0;
        }
      }
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        const int64_t s = first_step + j;
        if (s >= end) break;
        const float weight = e[s * kBlockTokens + token];
#pragma unroll
        for (int c = 0; c < kChannels; ++c) sum[c] = fused(weight, from_half(batch[j][c]), sum[c]);
      }
    }
#pragma unroll
    for (int c = 0; c < kChannels; ++c) whole[c] = begin == 0 ? sum[c] : whole[c] + sum[c];
  }
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    const int d = worker + c * kWorkers;
    if (d < kHeadDim) out[d] = whole[c] / total;
  }
}

__global__ void __launch_bounds__(kCacheThreads) append_attention_kernel(AppendAttentionParams p) {
  GROUPEDMIXER_DYNAMIC_SHARED(float, e);
  __shared__ float staged[kStagedFloats];
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kBlockTokens, head = blockIdx.y;
  for (int i = static_cast<int>(threadIdx.x); i < 3 * kHeadDim * kBlockTokens; i += kCacheThreads) {
    const int channel = i % kHeadDim, part = i / kHeadDim % 3, token = i / (3 * kHeadDim);
    if (first + token >= p.tokens) continue;
    const float* row = p.qkv + (first + token) * p.qkv_stride;
    staged[(part * kHeadDim + channel) * kStagedStride + token] =
        row[(part * p.heads + head) * kHeadDim + channel];
  }
  __syncthreads();
  append_and_attend(p, staged, e);
}

// The panels of a head's q, k and v; a thread has 4 x 4 of the 16 x 96 outputs.
using CrossTile = TileShape<kBlockTokens, 3 * kHeadDim, 2, kCacheThreads>;
static_assert(kHeadDim == kPanel);

__global__ void __launch_bounds__(kCacheThreads)
    cross_attention_kernel(LinearShape qkv, NormedSource x, AppendAttentionParams p) {
  GROUPEDMIXER_DYNAMIC_SHARED(float, e);
  __align__(16) __shared__ float memory[CrossTile::kFloats];
  __shared__ NormedSource::Row rows[kBlockTokens];
  __shared__ float staged[kStagedFloats];
  const auto panel_of = [&](int part) { return part * p.heads + blockIdx.y; };
  multiply_tile<CrossTile>(qkv, x, static_cast<int64_t>(blockIdx.x) * kBlockTokens, panel_of,
                           memory, rows, [&](int token, int channel, float value) {
                             staged[channel * kStagedStride + token] = value;
                           });
  __syncthreads();
  append_and_attend(p, staged, e);
}

dim3 cache_grid(int64_t tokens, int64_t heads) {
  return dim3(static_cast<unsigned>((tokens + kBlockTokens - 1) / kBlockTokens),
              static_cast<unsigned>(heads));
}

size_t score_bytes(int64_t step) {
  return static_cast<size_t>(step + 1) * kBlockTokens * sizeof(float);
}

}  // namespace

void launch_window_attention(const WindowLayerParams& p, void* stream) {
  int64_t cells = 0;
  for (int32_t i = 0; i < p.tiles.count; ++i) {
    cells = std::max(cells, cells_of(p.tiles.tiles[i], p.shifted));
  }
  if (cells == 0) return;
  const dim3 grid(static_cast<unsigned>(cells), static_cast<unsigned>(p.tiles.count),
                  static_cast<unsigned>(p.heads));
  launch("window_attention_kernel", window_attention_kernel, grid, kWindowThreads, 0, stream, p);
}

void launch_append_attention(const AppendAttentionParams& p, void* stream) {
  if (p.tokens == 0) return;
  launch("append_attention_kernel", append_attention_kernel, cache_grid(p.tokens, p.heads),
         kCacheThreads, score_bytes(p.step), stream, p);
}

void launch_cross_attention(const CrossAttentionParams& p, void* stream) {
  if (p.tokens == 0) return;
  const int64_t d = p.heads * kHeadDim;
  const LinearShape qkv{p.tokens, d, 3 * d, p.weight, p.bias};
  const NormedSource x{p.x, d, d, p.norm_weight, p.norm_bias};
  const AppendAttentionParams append{nullptr,  0,       p.cache, p.step_bias, p.out,  d,
                                     p.tokens, p.heads, p.step,  p.capacity,  nullptr};
  launch("cross_attention_kernel", cross_attention_kernel, cache_grid(p.tokens, p.heads),
         kCacheThreads, score_bytes(p.step), stream, qkv, x, append);
}

}  // namespace groupedmixer::strict
