// SPDX-License-Identifier: MIT
//
// Mixer::predict and Mixer::correct on a GPU, with the bits of the CPU. For .cu files.
//
//   - All tiles of a set take a step together. A token's row is everywhere at its place in the set;
//     rows between tiles are computed with as well, what they hold means nothing.
//   - A step only enqueues kernels, the same ones in every call with this set: 2 + 7 layers, and
//     one for latent residual prediction. It may be captured in a graph.
//   - Weights are read-only: any number of states may be under way, on streams of their own.

#pragma once

#include <cstdint>
#include <vector>

#include "common/device_memory.h"
#include "common/tile_failures.h"
#include "common/tile_set.h"
#include "mixer/mixer.h"
#include "strict/device_linear.h"

namespace groupedmixer::mixer {

// The state of a set of tiles between steps: device pointers. T = set.tokens.
struct DeviceTiles {
  TileSet set;
  // The caller's:
  const int32_t* position;  // [T], where a token's patch begins: y * latent_width + x; -1: no token
  int64_t latent_width;
  const float* psi;    // [latent height, latent width, d]
  const float* level;  // [d], e_level
  uint32_t* failures;  // [tiles] (tile_failures.h), kNoTileFailure at first
  // Of the layout:
  float* y_hat;        // [G, T, C]; groups before the current one are decoded
  float* mean;         // [T, C] of the current group
  float* uncorrected;  // [T, C], y_hat of the current group ahead of `correct`; null without it

  float* embedding_bias;  // [G, d]
  float* x;               // [T, d]
  float* qkv;             // [T, 3 d], inner-group
  float* attended;        // [T, d]
  float* hidden;          // [T, 4 d]
  uint16_t* cache;        // [layers, cache_size]
  int64_t cache_size;
};

class DeviceMixer {
 public:
  // Copies the weights to the current device.
  DeviceMixer(const Mixer& mixer,
              const AlignedVector& thresholds);  // of raw scales, in any order

  // A state in memory of the layout, which may be a measuring one. Leaves the caller's members to
  // the caller.
  DeviceTiles make_tiles(const TileSet& set, DeviceLayout& layout) const;

  // Once a call, ahead of the first step: reads `level`.
  void prepare(const DeviceTiles& state, void* stream) const;

  // Predicts group `step`: its means into the state, its scale indexes, and appends to the context
  // cache. A mean or raw scale that is not finite makes prediction_failure(step) the word of its
  // tile, unless that is less.
  void predict(const DeviceTiles& state, int64_t step,
               uint8_t* indexes,  // [T, C]
               void* stream) const;

  // Where y_hat of a group is to be written, [T, C], for `correct` to go on with.
  float* decoded(const DeviceTiles& state, int64_t step) const;

  // Latent residual prediction: makes decoded(step) y_hat[step]. Nothing without it, when the two
  // are the same.
  void correct(const DeviceTiles& state, int64_t step, void* stream) const;

 private:
  struct Norm {
    DeviceArray<float> weight, bias;
  };
  struct Block {
    Norm inner_norm, cross_norm, mlp_norm;
    strict::DeviceLinear inner_qkv, inner_proj, cross_qkv, cross_proj, fc1, fc2;
    DeviceArray<float> relative_bias;  // [heads, 225]
    DeviceArray<float> step_bias;      // [heads, G, G]
  };

  void embed(const DeviceTiles& state, int64_t step, void* stream) const;
  void run_block(const DeviceTiles& state, size_t layer, int64_t step, void* stream) const;

  MixerSizes sizes_;
  DeviceArray<float> start_;                 // [C]
  DeviceArray<float> group_embedding_;       // [G, d]
  std::vector<strict::DeviceLinear> embed_;  // as in MixerWeights
  std::vector<Block> blocks_;
  Norm norm_;
  // By slice. The head gives means from column 0 on and raw scales from the panel on that begins
  // behind them.
  std::vector<strict::DeviceLinear> head_, lrp_;
  DeviceArray<float> thresholds_;  // ascending
  int64_t num_thresholds_;
};

}  // namespace groupedmixer::mixer
