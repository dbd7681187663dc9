// SPDX-License-Identifier: MIT
//
// Sources and sinks (linear_kernel.h) of layers over the rows of a matrix, and layer norm. For .cu
// files.

#pragma once

#include <cstdint>

#include "strict/kernels.h"

namespace groupedmixer::strict {

// ---- layer norm ---------------------------------------------------------------------------------

struct NormStatistics {
  float mean, scale;
};

// The tree of a lane sum; all threads of a half warp take part and get the sum.
inline __device__ float add_lanes(float sum) {
  for (int half = kLanes / 2; half > 0; half /= 2) {
    sum = sum + __shfl_down_sync(~0u, sum, half, kLanes);
  }
  return __shfl_sync(~0u, sum, 0, kLanes);
}

// add(element, is the first) for x[lane], x[lane + 16], .. in that order. All loads of a batch are
// under way before the first one is waited for.
template <typename Add>
inline __device__ void for_elements_of_lane(const float* x, int64_t width, int lane,
                                            const Add& add) {
  constexpr int kBatch = 16;
  for (int64_t begin = lane; begin < width; begin += kBatch * kLanes) {
    float batch[kBatch];
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      batch[j] = begin + j * kLanes < width ? x[begin + j * kLanes] : 0.0f;
    }
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      if (begin + j * kLanes < width) add(batch[j], j == 0 && begin == lane);
    }
  }
}

// Of a row, by half a warp: lane j of the sum is thread j. All threads of the warp call it.
inline __device__ NormStatistics norm_statistics(const float* x,  // [width]
                                                 int64_t width, int lane) {
  const float count = static_cast<float>(width);
  float sum = 0.0f;
  for_elements_of_lane(x, width, lane,
                       [&](float value, bool first) { sum = first ? value : sum + value; });
  const float mean = add_lanes(sum) / count;
  float squares = 0.0f;
  for_elements_of_lane(x, width, lane, [&](float value, bool first) {
    const float centred = value - mean;
    squares = first ? centred * centred : fused(centred, centred, squares);
  });
  const float variance = add_lanes(squares) / count;
  return {mean, 1.0f / square_root(variance + kNormEpsilon)};
}

inline __device__ float normalise(float x, float mean, float scale, float weight, float bias) {
  const float scaled = (x - mean) * scale;
  return fused(scaled, weight, bias);
}

// ---- sources ------------------------------------------------------------------------------------

struct RowsSource {
  const float* x;  // [rows, depth]
  int64_t stride;

  struct Row {
    int64_t offset;
  };
  struct Column {
    int64_t k;
  };
  __device__ void open(int64_t row, int lane, Row& out) const {
    if (lane == 0) out.offset = row * stride;
  }
  __device__ Column column(int64_t k) const { return {k}; }
  __device__ float at(const Row& row, const Column& column) const {
    return x[row.offset + column.k];
  }
};

// norm(x).
struct NormedSource {
  const float* x;  // [rows, depth], depth a multiple of 32
  int64_t stride;
  int64_t depth;
  const float* weight;  // [depth]
  const float* bias;    // [depth]

  struct __align__(16) Row {
    int64_t offset;
    float mean, scale;
  };
  struct Column {
    int64_t k;
    float weight, bias;
  };
  __device__ void open(int64_t row, int lane, Row& out) const {
    const NormStatistics s = norm_statistics(x + row * stride, depth, lane);
    if (lane == 0) out = {row * stride, s.mean, s.scale};
  }
  __device__ Column column(int64_t k) const { return {k, weight[k], bias[k]}; }
  __device__ float at(const Row& row, const Column& column) const {
    return normalise(x[row.offset + column.k], row.mean, row.scale, column.weight, column.bias);
  }
};

// ---- sinks --------------------------------------------------------------------------------------

inline __device__ float activate(Activation activation, float x) {
  if (activation == Activation::kGelu) return gelu(x);
  if (activation == Activation::kLeakyRelu) return leaky_relu(x);
  return x;
}

// activation(value) [+ residual]
struct RowsSink {
  float* out;  // [rows, width]
  int64_t stride;
  Activation activation;
  const float* residual;  // [rows, width], may be out; null: none
  int64_t residual_stride;

  __device__ void put(int64_t row, int64_t column, float value) const {
    value = activate(activation, value);
    if (residual != nullptr) value = residual[row * residual_stride + column] + value;
    out[row * stride + column] = value;
  }
};

}  // namespace groupedmixer::strict
