// SPDX-License-Identifier: MIT
//
// Convolutions on a GPU: docs/numerics.md, section 4. One over all channels is a linear layer over
// windows. A depth-wise one is bound by loads: neighbours of a row share a thread, their weights
// and most of their taps.

#include "common/cuda_launch.h"
#include "strict/convolution_cuda.h"
#include "strict/linear_kernel.h"
#include "strict/linear_rows.h"
#include "strict/window_source.h"

namespace groupedmixer::strict {
namespace {

constexpr int kSide = 3;
constexpr int kGroup = 4;      // pixels of a thread, side by side
constexpr int kChannels = 32;  // of a block
constexpr int kGroupRows = 8;  // groups of a block
constexpr int kThreads = kChannels * kGroupRows;

__global__ void __launch_bounds__(kThreads) depthwise3x3_kernel(DepthwiseParams p) {
  const int64_t channel = blockIdx.y * kChannels + threadIdx.x;
  const uint32_t across = static_cast<uint32_t>((p.width + kGroup - 1) / kGroup);  // groups
  const uint32_t group = blockIdx.x * kGroupRows + threadIdx.y;
  const int64_t row = p.row_begin + group / across, left = int64_t{group % across} * kGroup;
  if (row >= p.row_end || channel >= p.channels) return;

  const float bias = p.bias[channel];
  float sum[kGroup];
#pragma unroll
  for (int g = 0; g < kGroup; ++g) sum[g] = bias;
#pragma unroll
  for (int i = 0; i < kSide; ++i) {
    const int64_t y = row + i - 1;
    const bool has_row = y >= 0 && y < p.height;
    float taps[kGroup + kSide - 1];
#pragma unroll
    for (int j = 0; j < kGroup + kSide - 1; ++j) {
      const int64_t x = left + j - 1;
      const bool inside = has_row && x >= 0 && x < p.width;
      taps[j] = inside ? p.x[(y * p.width + x) * p.channels + channel] : 0.0f;
    }
#pragma unroll
    for (int j = 0; j < kSide; ++j) {
      const float weight = p.weight[(i * kSide + j) * p.channels + channel];
#pragma unroll
      for (int g = 0; g < kGroup; ++g) sum[g] = fused(taps[g + j], weight, sum[g]);
    }
  }
#pragma unroll
  for (int g = 0; g < kGroup; ++g) {
    if (left + g < p.width) p.out[(row * p.width + left + g) * p.channels + channel] = sum[g];
  }
}

}  // namespace

void launch_depthwise3x3(const DepthwiseParams& p, void* stream) {
  const int64_t groups = (p.row_end - p.row_begin) * ((p.width + kGroup - 1) / kGroup);
  if (groups == 0 || p.channels == 0) return;
  const dim3 grid(static_cast<unsigned>((groups + kGroupRows - 1) / kGroupRows),
                  static_cast<unsigned>((p.channels + kChannels - 1) / kChannels));
  launch("depthwise3x3", depthwise3x3_kernel, grid, dim3(kChannels, kGroupRows), 0, stream, p);
}

void launch_conv3x3(const Conv3x3Params& p, void* stream) {
  const int64_t rows = (p.height + p.stride - 1) / p.stride;
  const int64_t columns = (p.width + p.stride - 1) / p.stride;
  const int64_t depth = kSide * kSide * p.channels;
  const LinearShape shape{rows * columns, depth, p.out_channels, p.weight, p.bias};
  const WindowSource source{p.x, p.height, p.width, p.channels, p.stride, columns};
  const RowsSink sink{p.out, p.out_channels, p.activation, nullptr, 0};
  launch_linear_kernel("conv3x3", shape, source, sink, stream);
}

}  // namespace groupedmixer::strict
