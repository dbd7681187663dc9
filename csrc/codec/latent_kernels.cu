// SPDX-License-Identifier: MIT

#include "codec/latent_kernels.h"
#include "common/cuda_launch.h"
#include "strict/math.h"

namespace groupedmixer::codec {
namespace {

constexpr int kThreads = 256;

__global__ void scale_channels_kernel(ScaleChannelsParams p) {
  const int64_t count = p.positions * p.channels;
  for (int64_t i = first_element(); i < count; i += element_stride()) {
    p.x[i] = p.x[i] * p.gain[i % p.channels];
  }
}

__global__ void quantize_hyper_kernel(QuantizeHyperParams p) {
  const int64_t count = p.positions * p.channels;
  for (int64_t i = first_element(); i < count; i += element_stride()) {
    const int64_t channel = i % p.channels;
    const float scaled = p.z[i] * p.gain[channel];
    const float value = scaled - p.medians[channel];
    const bool finite = strict::absolute(value) < 3.0e38f;  // as latent_coder.cpp has it
    if (!finite) *p.non_finite = 1;                         // whoever writes it last
    const float clamped = strict::smaller(strict::larger(value, -32768.0f), 32767.0f);
    p.symbols[i] = finite ? static_cast<int16_t>(strict::round_half_even(clamped)) : int16_t{0};
  }
}

__global__ void dequantize_hyper_kernel(DequantizeHyperParams p) {
  const int64_t count = p.positions * p.channels;
  for (int64_t i = first_element(); i < count; i += element_stride()) {
    const int64_t channel = i % p.channels;
    const float shifted = static_cast<float>(p.symbols[i]) + p.medians[channel];
    p.z_hat[i] = shifted * p.inverse_gain[channel];
  }
}

// Groups along y of the grid; channels of a token are next to each other on both sides.
__global__ void merge_groups_kernel(MergeGroupsParams p) {
  const int64_t group = blockIdx.y, count = p.tiles.tokens * p.channels;
  const float* y_hat = p.y_hat + group * count;
  const int64_t offset = p.offset[group], first = p.channel[group];
  for (int64_t i = first_element(); i < count; i += element_stride()) {
    const int64_t position = p.position[i / p.channels];
    if (position < 0) continue;
    const int64_t channel = first + i % p.channels;
    const float value = p.gain == nullptr ? y_hat[i] : y_hat[i] * p.gain[channel];
    p.latent[(position + offset) * p.latent_channels + channel] = value;
  }
}

}  // namespace

void launch_scale_channels(const ScaleChannelsParams& p, void* stream) {
  const int64_t count = p.positions * p.channels;
  if (count == 0) return;
  launch("scale_channels_kernel", scale_channels_kernel, grid_size(count, kThreads), kThreads, 0,
         stream, p);
}

void launch_quantize_hyper(const QuantizeHyperParams& p, void* stream) {
  const int64_t count = p.positions * p.channels;
  if (count == 0) return;
  launch("quantize_hyper_kernel", quantize_hyper_kernel, grid_size(count, kThreads), kThreads, 0,
         stream, p);
}

void launch_dequantize_hyper(const DequantizeHyperParams& p, void* stream) {
  const int64_t count = p.positions * p.channels;
  if (count == 0) return;
  launch("dequantize_hyper_kernel", dequantize_hyper_kernel, grid_size(count, kThreads), kThreads,
         0, stream, p);
}

void launch_merge_groups(const MergeGroupsParams& p, void* stream) {
  const int64_t count = p.tiles.tokens * p.channels;
  if (count == 0 || p.groups == 0) return;
  const dim3 grid(grid_size(count, kThreads), static_cast<unsigned>(p.groups));
  launch("merge_groups_kernel", merge_groups_kernel, grid, kThreads, 0, stream, p);
}

}  // namespace groupedmixer::codec
