// SPDX-License-Identifier: MIT
//
// 3x3 windows of an image, with padding 1, as rows of a matrix that a linear layer multiplies
// (linear_kernel.h). For .cu files.

#pragma once

#include <cstdint>

#include "common/cuda_launch.h"

namespace groupedmixer::strict {

struct WindowSource {
  // Of a window.
  struct Row {
    int64_t first;    // float of the image where the window begins, also if that lies outside
    uint32_t inside;  // bit t: tap t = 3 i + j is a pixel of the image
  };
  struct Column {
    int64_t offset;  // from the window's first float
    uint32_t tap;
  };

  const float* x;  // [height, width, channels]
  int64_t height, width, channels;
  int64_t stride;
  int64_t columns;  // of the grid of windows

  __device__ void open(int64_t row, int lane, Row& out) const {
    if (lane != 0) return;
    const uint32_t index = static_cast<uint32_t>(row), across = static_cast<uint32_t>(columns);
    const int64_t top = index / across * stride - 1, left = index % across * stride - 1;
    uint32_t inside = 0;
    for (int i = 0; i < kSide; ++i) {
      for (int j = 0; j < kSide; ++j) {
        const bool exists = top + i >= 0 && top + i < height && left + j >= 0 && left + j < width;
        inside |= static_cast<uint32_t>(exists) << (i * kSide + j);
      }
    }
    out = {(top * width + left) * channels, inside};
  }

  __device__ Column column(int64_t k) const {
    const uint32_t index = static_cast<uint32_t>(k), each = static_cast<uint32_t>(channels);
    const uint32_t tap = index / each, channel = index % each;
    return {(tap / kSide * width + tap % kSide) * channels + channel, tap};
  }

  __device__ float at(const Row& row, const Column& column) const {
    return (row.inside >> column.tap & 1) != 0 ? x[row.first + column.offset] : 0.0f;
  }

 private:
  static constexpr int kSide = 3;
};

}  // namespace groupedmixer::strict
