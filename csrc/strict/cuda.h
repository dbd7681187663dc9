// SPDX-License-Identifier: MIT
//
// The strict layers on a GPU, with the bits of kernels.h. A launcher enqueues on `stream`, a
// cudaStream_t; all pointers are device pointers. Throw std::runtime_error if the launch fails.

#pragma once

#include <cstdint>

#include "common/tile_set.h"
#include "strict/kernels.h"

namespace groupedmixer::strict {

// Inner-group attention of all cells and heads of a set of tiles.
struct WindowLayerParams {
  const float* qkv;  // [tokens, 3 heads * 32]
  TileSet tiles;     // of 1 x 1 at least
  int64_t heads;
  bool shifted;                // cells of the lattice through (4, 4) instead of (0, 0)
  const float* relative_bias;  // [heads, 225]
  float* out;                  // [tokens, heads * 32]; tokens of no tile stay as they are
};

// Cross-group attention from the residual stream on: norm, q, k and v, then as
// launch_append_attention.
struct CrossAttentionParams {
  const float* x;            // [tokens, d], d = heads * 32
  const float* norm_weight;  // [d]
  const float* norm_bias;    // [d]
  const float* weight;       // packed, of 3 d columns
  const float* bias;         // [3 d]
  uint16_t* cache;           // laid out by KvCache
  const float* step_bias;    // [heads, capacity, capacity]
  float* out;                // [tokens, d]
  int64_t tokens;
  int64_t heads;
  int64_t step;      // 0 .. capacity - 1; earlier steps must have been appended
  int64_t capacity;  // G
};

// Weights are packed as for the CPU; params.normed is not used.
void launch_linear(const LinearParams& params, void* stream);
void launch_norm(const NormParams& params, void* stream);
void launch_window_attention(const WindowLayerParams& params, void* stream);
// Any number of tokens, 16 of them after another in the cache; params.scratch is not used.
void launch_append_attention(const AppendAttentionParams& params, void* stream);
void launch_cross_attention(const CrossAttentionParams& params, void* stream);

}  // namespace groupedmixer::strict
