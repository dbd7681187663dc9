// SPDX-License-Identifier: MIT
//
// 3x3 convolutions with padding 1 on a GPU, with the bits of the CPU. A launcher enqueues on
// `stream`, a cudaStream_t; all pointers are device pointers. Throw std::runtime_error if the
// launch fails.

#pragma once

#include <cstdint>

#include "strict/kernels.h"

namespace groupedmixer::strict {

// out = activation(convolution(x))
struct Conv3x3Params {
  const float* x;  // [height, width, channels]
  int64_t height, width, channels;
  int64_t stride;
  const float* weight;  // packed: [ceil(out_channels / 32), 9 channels, 32]
  const float* bias;    // [out_channels rounded up to 32]
  float* out;           // [ceil(height / stride), ceil(width / stride), out_channels]
  int64_t out_channels;
  Activation activation = Activation::kNone;
};

void launch_conv3x3(const Conv3x3Params& params, void* stream);
void launch_depthwise3x3(const DepthwiseParams& params, void* stream);

}  // namespace groupedmixer::strict
