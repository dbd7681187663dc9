// SPDX-License-Identifier: MIT
//
// One element a thread. Bits must equal those of symbols_isa.cpp: single IEEE operations in the
// same order, no contraction (--fmad=false and explicit intrinsics).

#include "common/cuda_launch.h"
#include "entropy/symbols.h"

namespace groupedmixer::entropy {
namespace {

constexpr int kThreads = 256;

__device__ uint32_t bit_if_non_finite(float x, uint32_t bit) {
  constexpr uint32_t kExponent = 0x7f800000u;
  return (__float_as_uint(x) & kExponent) == kExponent ? bit : 0u;
}

__device__ int count_thresholds(float raw_scale,
                                const float* thresholds,  // [num_thresholds]
                                int64_t num_thresholds) {
  int below = 0;
  for (int64_t t = 0; t < num_thresholds; ++t) below += thresholds[t] < raw_scale ? 1 : 0;
  return below;
}

__device__ int round_symbol(float x) {
  x = x > -32768.0f ? x : -32768.0f;
  x = x < 32767.0f ? x : 32767.0f;
  return __float2int_rn(x);
}

__device__ int symbol_of(float residual, int index, float dead_zone, int64_t skip_below) {
  return index < skip_below || fabsf(residual) < dead_zone ? 0 : round_symbol(residual);
}

__global__ void quantize_group_kernel(QuantizeGroupParams p,
                                      uint32_t* non_finite) {  // [1], bits are added
  uint32_t bad = 0;
  for (int64_t i = first_element(); i < p.count; i += element_stride()) {
    const float y = p.y[i];
    const float mean = p.mean[i];
    const float raw_scale = p.raw_scale[i];
    bad |= bit_if_non_finite(y, kNonFiniteY) | bit_if_non_finite(mean, kNonFiniteMean) |
           bit_if_non_finite(raw_scale, kNonFiniteRawScale);
    const int index = count_thresholds(raw_scale, p.thresholds, p.num_thresholds);
    const float dead_zone = p.dead_zone != nullptr ? p.dead_zone[index] : 0.0f;
    const int symbol = symbol_of(__fsub_rn(y, mean), index, dead_zone, p.skip_below);
    p.indexes[i] = static_cast<uint8_t>(index);
    p.symbols[i] = static_cast<int16_t>(symbol);
    p.y_hat[i] = __fadd_rn(__int2float_rn(symbol), mean);
  }
  if (bad != 0) atomicOr(non_finite, bad);  // a set of bits: the order of threads cannot show
}

__global__ void scale_indexes_kernel(ScaleIndexesParams p,
                                     uint32_t* non_finite) {  // [1], bits are added
  uint32_t bad = 0;
  for (int64_t i = first_element(); i < p.count; i += element_stride()) {
    const float raw_scale = p.raw_scale[i];
    bad |= bit_if_non_finite(p.mean[i], kNonFiniteMean) |
           bit_if_non_finite(raw_scale, kNonFiniteRawScale);
    p.indexes[i] =
        static_cast<uint8_t>(count_thresholds(raw_scale, p.thresholds, p.num_thresholds));
  }
  if (bad != 0) atomicOr(non_finite, bad);
}

__global__ void dequantize_group_kernel(DequantizeGroupParams p) {
  for (int64_t i = first_element(); i < p.count; i += element_stride()) {
    p.y_hat[i] = __fadd_rn(__int2float_rn(p.symbols[i]), p.mean[i]);
  }
}

__global__ void quantize_tiles_kernel(QuantizeTilesParams p) {
  const int64_t count = static_cast<int64_t>(p.set.tokens) * p.channels;
  const int64_t phase = p.row_phase * p.latent_width + p.column_phase;
  for (int64_t i = first_element(); i < count; i += element_stride()) {
    const auto token = static_cast<int32_t>(i / p.channels);
    const int32_t position = p.position[token];
    if (position < 0) {
      p.symbols[i] = 0;
      p.y_hat[i] = 0.0f;
      continue;
    }
    const int64_t channel = p.slice * p.channels + i % p.channels;
    const float y = p.y[(position + phase) * p.latent_channels + channel];
    if (bit_if_non_finite(y, kNonFiniteY) != 0) {
      atomicMin(&p.failures[p.set.tile_of(token)], p.failure);
    }
    const float mean = p.mean[i];
    const int index = p.indexes[i];
    const int symbol = symbol_of(__fsub_rn(y, mean), index, p.dead_zone[index], p.skip_below);
    p.symbols[i] = static_cast<int16_t>(symbol);
    p.y_hat[i] = __fadd_rn(__int2float_rn(symbol), mean);
  }
}

}  // namespace

void launch_quantize_group(const QuantizeGroupParams& params, uint32_t* non_finite, void* stream) {
  if (params.count == 0) return;
  launch("quantize_group_kernel", quantize_group_kernel, grid_size(params.count, kThreads),
         kThreads, 0, stream, params, non_finite);
}

void launch_scale_indexes(const ScaleIndexesParams& params, uint32_t* non_finite, void* stream) {
  if (params.count == 0) return;
  launch("scale_indexes_kernel", scale_indexes_kernel, grid_size(params.count, kThreads), kThreads,
         0, stream, params, non_finite);
}

void launch_dequantize_group(const DequantizeGroupParams& params, void* stream) {
  if (params.count == 0) return;
  launch("dequantize_group_kernel", dequantize_group_kernel, grid_size(params.count, kThreads),
         kThreads, 0, stream, params);
}

void launch_quantize_tiles(const QuantizeTilesParams& params, void* stream) {
  const int64_t count = static_cast<int64_t>(params.set.tokens) * params.channels;
  if (count == 0) return;
  launch("quantize_tiles_kernel", quantize_tiles_kernel, grid_size(count, kThreads), kThreads, 0,
         stream, params);
}

}  // namespace groupedmixer::entropy
