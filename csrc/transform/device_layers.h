// SPDX-License-Identifier: MIT
//
// What the transforms share on a GPU: layers on its memory, and pixel shuffle as a layer's last
// step. For .cu files.

#pragma once

#include <cstdint>

#include "strict/cuda.h"
#include "strict/device_linear.h"
#include "strict/linear_kernel.h"
#include "strict/linear_rows.h"
#include "transform/layers.h"

namespace groupedmixer::transform {

inline strict::LinearShape shape_of(const strict::DeviceLinear& layer, int64_t rows) {
  return {rows, layer.depth, layer.width, layer.weight.data(), layer.bias.data()};
}

inline void launch_layer(const strict::DeviceLinear& layer, const LayerCall& call, void* stream) {
  strict::launch_linear(params_of(layer, call), stream);
}

// Of rows that the layer reads elsewhere than from a matrix (linear_kernel.h).
template <typename Source>
void launch_layer(const char* name, const strict::DeviceLinear& layer, int64_t rows,
                  const Source& source,
                  float* out,  // [rows, layer.width]
                  void* stream) {
  const strict::RowsSink sink{out, layer.width, strict::Activation::kNone, nullptr, 0};
  strict::launch_linear_kernel(name, shape_of(layer, rows), source, sink, stream);
}

// Takes a layer's outputs at a pixel, [2, 2, channels], to the 2 x 2 pixels that take its place.
// Those outside of `out` are dropped.
struct ShuffleSink {
  float* out;  // [height, width, channels]
  int64_t height, width, channels;
  int64_t columns;  // of the layer's grid
  strict::Activation activation;

  __device__ void put(int64_t row, int64_t column, float value) const {
    const uint32_t pixel = static_cast<uint32_t>(row), across = static_cast<uint32_t>(columns);
    const uint32_t output = static_cast<uint32_t>(column), each = static_cast<uint32_t>(channels);
    const uint32_t part = output / each, channel = output % each;
    const int64_t y = 2 * int64_t{pixel / across} + part / 2;
    const int64_t x = 2 * int64_t{pixel % across} + part % 2;
    if (y >= height || x >= width) return;
    out[(y * width + x) * channels + channel] = strict::activate(activation, value);
  }
};

}  // namespace groupedmixer::transform
