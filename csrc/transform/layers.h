// SPDX-License-Identifier: MIT
//
// What the transforms share: layers read from weights, and 3x3 windows as rows of a matrix.

#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "common/weight_map.h"
#include "strict/packed.h"

namespace groupedmixer::transform {

constexpr int64_t ceil_div(int64_t value, int64_t divisor) {
  return (value + divisor - 1) / divisor;
}

// `name`.weight [width, channels, side, side] and `name`.bias [width]. Output i of the packed layer
// is output order[i] of the stored one; an empty order changes nothing.
strict::PackedLinear load_layer(const WeightMap& weights, const std::string& name, int64_t width,
                                int64_t channels, int64_t side,
                                const std::vector<int64_t>& order = {});

// The order that makes a layer's outputs [side, side, channels], so that a pixel of the shuffle
// behind it is a run of outputs.
std::vector<int64_t> shuffled_order(int64_t channels, int64_t side);

// out = activation(layer(x)) [+ residual]
struct LayerCall {
  const float* x;  // [rows, depth]
  int64_t x_stride;
  float* out;  // [rows, width]
  int64_t out_stride;
  int64_t rows;
  strict::Activation activation = strict::Activation::kNone;
  const float* residual = nullptr;  // [rows, width] in steps of out_stride, may be out
};
void apply(const strict::PackedLinear& layer, const LayerCall& call);

// `Layer` is a PackedLinear, or what a device has of one.
template <typename Layer>
strict::LinearParams params_of(const Layer& layer, const LayerCall& call) {
  strict::LinearParams params{};
  params.x = call.x;
  params.x_stride = call.x_stride;
  params.weight = layer.weight.data();
  params.bias = layer.bias.data();
  params.out = call.out;
  params.out_stride = call.out_stride;
  params.rows = call.rows;
  params.depth = layer.depth;
  params.width = layer.width;
  params.activation = call.activation;
  params.residual = call.residual;
  params.residual_stride = call.out_stride;
  return params;
}

// The part of an image that is in memory.
struct ImagePart {
  const float* data;  // [.., columns, channels], from pixel (top, left) on
  int64_t top, left;
  int64_t columns;
  int64_t channels;
  int64_t height, width;  // of the image: behind its borders are zeros
};

// A rectangle of pixels; as a list in raster order where a function takes indexes into it.
struct Grid {
  int64_t top, left;
  int64_t rows, columns;
  int64_t count() const { return rows * columns; }
};

// The 3x3 windows behind the pixels begin .. end-1 of `grid`, an output of a convolution with
// padding 1. All that windows see of the image has to be in memory.
void gather_windows(const ImagePart& image, int64_t stride, const Grid& grid, int64_t begin,
                    int64_t end,
                    float* out);  // [end - begin, 9 * channels]

// item(begin, end) for parts of [begin, end) of about the same size, `most` at most.
template <typename Item>
void for_parts(int64_t begin, int64_t end, int64_t most, const Item& item) {
  for (int64_t parts = ceil_div(end - begin, most); parts > 0; --parts) {
    const int64_t size = ceil_div(end - begin, parts);
    item(begin, begin + size);
    begin += size;
  }
}

}  // namespace groupedmixer::transform
