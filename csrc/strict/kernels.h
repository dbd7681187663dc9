// SPDX-License-Identifier: MIT
//
// The strict kernels of the CPU: docs/numerics.md, one function a layer. Each runs on the calling
// thread, which must be under a ScopedFloatMode, and works on the rows, cells or blocks it is
// given; callers split the work among threads, and no split changes a bit. All
// matrices are row-major with a row stride in floats; images are [height, width, channels].

#pragma once

#include <cstdint>

#include "strict/math.h"

namespace groupedmixer::strict {

// Columns of packed weights (packed.h).
constexpr int64_t kPanel = 32;

// Rows of a linear layer that share a pass over the weights: what a layer norm made of them stays
// in the second-level cache.
constexpr int64_t kRowBlock = 96;

// Tokens that go through cross-group attention side by side, one a lane.
constexpr int64_t kTokenBlock = kLanes;

enum class Activation { kNone, kGelu, kLeakyRelu };

// out = activation(dot(norm(x), W, bias)) [+ residual]
struct LinearParams {
  const float* x;  // [rows, depth]
  int64_t x_stride;
  const float* weight;  // packed: [ceil(width / 32), depth, 32]
  const float* bias;    // [width rounded up to 32]
  float* out;           // [rows, width]
  int64_t out_stride;
  int64_t rows;
  int64_t depth;
  int64_t width;
  Activation activation = Activation::kNone;
  const float* residual = nullptr;  // [rows, width], may be out; null: none
  int64_t residual_stride = 0;
  const float* norm_weight = nullptr;  // [depth]; null: no layer norm. depth is a multiple of 32
  const float* norm_bias = nullptr;    // [depth]
  float* normed = nullptr;             // [min(rows, kRowBlock), depth] scratch for norm(x)
};

// Layer norm of rows; out may be x.
struct NormParams {
  const float* x;  // [rows, width]
  int64_t x_stride;
  const float* weight;  // [width], width a multiple of 32
  const float* bias;    // [width]
  float* out;           // [rows, width]
  int64_t out_stride;
  int64_t rows;
  int64_t width;
};

// Inner-group attention of one cell and one head, for some of the cell's tokens.
struct WindowAttentionParams {
  const float* qkv;  // [grid height, grid width, 3 heads * 32]
  int64_t grid_width;
  int64_t heads;
  int64_t head;
  int64_t top, left, rows, columns;  // of the cell, at most 8 x 8
  int64_t query_begin, query_end;    // in raster order of the cell
  const float* relative_bias;        // [heads, 225]
  float* out;                        // [grid height, grid width, heads * 32]
  float* scratch;                    // kWindowScratch floats
};
constexpr int64_t kWindowTokens = kWindow * kWindow;
constexpr int64_t kWindowScratch = (3 * kWindowTokens) * kHeadDim + kWindowTokens * kWindowTokens;

// Cross-group attention of up to 16 tokens, all heads. Appends the step's keys and values to the
// cache first (docs/numerics.md, section 5).
struct AppendAttentionParams {
  const float* qkv;  // [tokens, 3 heads * 32]
  int64_t qkv_stride;
  uint16_t* cache;         // laid out by KvCache
  const float* step_bias;  // [heads, capacity, capacity]
  float* out;              // [tokens, heads * 32]
  int64_t out_stride;
  int64_t tokens;  // 1 .. 16
  int64_t heads;
  int64_t step;      // 0 .. capacity - 1; earlier steps must have been appended
  int64_t capacity;  // G
  float* scratch;    // append_scratch(capacity) floats
};
constexpr int64_t append_scratch(int64_t capacity) {
  return (3 * kHeadDim + kLanes + capacity) * kLanes;
}

// Depth-wise 3x3 convolution of some rows of an image, stride 1, taps outside the image +0.
struct DepthwiseParams {
  const float* x;       // [height, width, channels]
  const float* weight;  // [9, channels]
  const float* bias;    // [channels]
  float* out;           // [height, width, channels]
  int64_t height, width, channels;
  int64_t row_begin, row_end;
};

// out = f(x), element by element; out may be x.
struct MapParams {
  const float* x;  // [count]
  float* out;      // [count]
  int64_t count;
};

// Everything that has variants.
struct Kernels {
  void (*linear)(const LinearParams& params);
  void (*norm)(const NormParams& params);
  void (*window_attention)(const WindowAttentionParams& params);
  void (*append_attention)(const AppendAttentionParams& params);
  void (*depthwise3x3)(const DepthwiseParams& params);
  void (*compand)(const MapParams& params);
  void (*leaky_relu)(const MapParams& params);
  void (*half_tanh)(const MapParams& params);  // out = fma(tanh(x), 0.5, out)
};

// The variant that runs here. Throws std::runtime_error if it failed its self-test.
const Kernels& kernels();

}  // namespace groupedmixer::strict
