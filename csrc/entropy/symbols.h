// SPDX-License-Identifier: MIT
//
// From what the entropy model predicts to what the coder codes, and back, element by element:
//
//   index  = number of thresholds strictly below raw_scale
//   symbol = round_half_even(y - mean) in int16, or 0 where index < skip_below or
//            |y - mean| < dead_zone[index]
//   y_hat  = float(symbol) + mean
//
// All variants give the same bits. Numbers that are not finite would decode differently elsewhere,
// so each function reports which of its inputs hold any, as a set of NonFinite bits.

#pragma once

#include <cstdint>

#include "common/tile_set.h"

namespace groupedmixer::entropy {

// Indexes are bytes.
constexpr int64_t kMaxThresholds = 255;

enum NonFinite : uint32_t {
  kNonFiniteY = 1u << 0,
  kNonFiniteMean = 1u << 1,
  kNonFiniteRawScale = 1u << 2,
};

struct QuantizeGroupParams {
  const float* y;           // [count]
  const float* mean;        // [count]
  const float* raw_scale;   // [count]
  const float* thresholds;  // [num_thresholds]
  const float* dead_zone;   // [num_thresholds + 1], or null for none
  int16_t* symbols;         // [count]
  uint8_t* indexes;         // [count]
  float* y_hat;             // [count]
  int64_t count;
  int64_t num_thresholds;  // <= kMaxThresholds
  int64_t skip_below;
};

struct ScaleIndexesParams {
  const float* raw_scale;   // [count]
  const float* mean;        // [count], only looked at for numbers that are not finite
  const float* thresholds;  // [num_thresholds]
  uint8_t* indexes;         // [count]
  int64_t count;
  int64_t num_thresholds;  // <= kMaxThresholds
};

struct DequantizeGroupParams {
  const int16_t* symbols;  // [count]
  const float* mean;       // [count]
  float* y_hat;            // [count]
  int64_t count;
};

// CPU. The caller's floating-point mode does not matter.
uint32_t quantize_group(const QuantizeGroupParams& params);
uint32_t scale_indexes(const ScaleIndexesParams& params);
void dequantize_group(const DequantizeGroupParams& params);

// CUDA: enqueue on `stream`, a cudaStream_t. All pointers are device pointers; NonFinite bits are
// added to *non_finite, which the caller has cleared. Throw std::runtime_error if the launch fails.
void launch_quantize_group(const QuantizeGroupParams& params, uint32_t* non_finite, void* stream);
void launch_scale_indexes(const ScaleIndexesParams& params, uint32_t* non_finite, void* stream);
void launch_dequantize_group(const DequantizeGroupParams& params, void* stream);

// A group of all tiles of a latent, of which the indexes are known already.
struct QuantizeTilesParams {
  const float* y;  // [latent height, latent_width, latent_channels]
  int64_t latent_width, latent_channels;
  int64_t row_phase, column_phase;
  int64_t slice;            // its first channel is slice * channels
  TileSet set;              // of T tokens
  const int32_t* position;  // [T], row * latent_width + column of the token's patch; -1: none
  const float* mean;        // [T, channels]
  const uint8_t* indexes;   // [T, channels]
  const float* dead_zone;   // [number of indexes]
  int32_t channels;
  int32_t skip_below;
  int16_t* symbols;    // [T, channels], 0 where there is no position
  float* y_hat;        // [T, channels], +0 where there is no position
  uint32_t* failures;  // [set.count], of a tile with NaN or infinity in y: at most failure
  uint32_t failure;
};
void launch_quantize_tiles(const QuantizeTilesParams& params, void* stream);

}  // namespace groupedmixer::entropy
