// SPDX-License-Identifier: MIT
//
// What the coding loop does to a latent on a GPU besides networks and coder, with the bits of
// latent_coder.cpp. Enqueue on `stream`, a cudaStream_t; all pointers are device pointers. Throw
// std::runtime_error if the launch fails.

#pragma once

#include <cstdint>

#include "common/tile_set.h"

namespace groupedmixer::codec {

// x[i, c] *= gain[c]
struct ScaleChannelsParams {
  float* x;           // [positions, channels]
  const float* gain;  // [channels]
  int64_t positions, channels;
};
void launch_scale_channels(const ScaleChannelsParams& params, void* stream);

// The hyper latent to symbols.
struct QuantizeHyperParams {
  const float* z;        // [positions, channels]
  const float* gain;     // [channels]
  const float* medians;  // [channels]
  int16_t* symbols;      // [positions, channels], 0 where z is not finite
  uint32_t* non_finite;  // set to 1 where any is; never cleared
  int64_t positions, channels;
};
void launch_quantize_hyper(const QuantizeHyperParams& params, void* stream);

// ... and back.
struct DequantizeHyperParams {
  const int16_t* symbols;     // [positions, channels]
  const float* medians;       // [channels]
  const float* inverse_gain;  // [channels]
  float* z_hat;               // [positions, channels]
  int64_t positions, channels;
};
void launch_dequantize_hyper(const DequantizeHyperParams& params, void* stream);

// The decoded groups of a set of tiles to their places in the latent.
struct MergeGroupsParams {
  TileSet tiles;
  const float* y_hat;       // [groups, tiles.tokens, channels]
  const int32_t* position;  // [tiles.tokens], where a token's patch begins in the latent; -1: none
  const int32_t* offset;    // [groups], of a group's phase within a patch, in latent positions
  const int32_t* channel;   // [groups], first channel of a group's slice
  const float* gain;        // [latent_channels] to multiply with; null: none
  float* latent;            // [latent height, latent width, latent_channels]
  int64_t groups, channels, latent_channels;
};
void launch_merge_groups(const MergeGroupsParams& params, void* stream);

}  // namespace groupedmixer::codec
