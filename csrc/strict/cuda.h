// SPDX-License-Identifier: MIT
//
// The strict layers on a GPU, with the bits of kernels.h. A launcher enqueues on `stream`, a
// cudaStream_t; all pointers are device pointers. Throw std::runtime_error if the launch fails.

#pragma once

#include <cstdint>

#include "strict/kernels.h"

namespace groupedmixer::strict {

// Inner-group attention of all cells and heads of a grid.
struct WindowLayerParams {
  const float* qkv;  // [height, width, 3 heads * 32]
  int64_t height, width;
  int64_t heads;
  bool shifted;                // cells of the lattice through (4, 4) instead of (0, 0)
  const float* relative_bias;  // [heads, 225]
  float* out;                  // [height, width, heads * 32]
};

// Weights are packed as for the CPU; params.normed is not used.
void launch_linear(const LinearParams& params, void* stream);
void launch_norm(const NormParams& params, void* stream);
void launch_window_attention(const WindowLayerParams& params, void* stream);
// Any number of tokens, 16 of them after another in the cache; params.scratch is not used.
void launch_append_attention(const AppendAttentionParams& params, void* stream);

}  // namespace groupedmixer::strict
