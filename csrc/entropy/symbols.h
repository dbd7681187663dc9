// SPDX-License-Identifier: MIT
//
// From what the entropy model predicts to what the coder codes, and back, element by element:
//
//   index  = number of thresholds strictly below raw_scale
//   symbol = round_half_even(y - mean) in int16, or 0 where index < skip_below
//   y_hat  = float(symbol) + mean
//
// All variants give the same bits. Numbers that are not finite would decode differently elsewhere,
// so each function reports which of its inputs hold any, as a set of NonFinite bits.

#pragma once

#include <cstdint>

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

}  // namespace groupedmixer::entropy
