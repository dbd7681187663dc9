// SPDX-License-Identifier: MIT
//
// Linear layers and layer norm on a GPU: docs/numerics.md, sections 2 to 4, with the bits of
// gemm_isa.cpp.

#include "common/cuda_launch.h"
#include "strict/cuda.h"
#include "strict/linear_kernel.h"
#include "strict/linear_rows.h"

namespace groupedmixer::strict {
namespace {

constexpr int kNormThreads = 256;
constexpr int64_t kNormRows = kNormThreads / kLanes;  // of a block

__global__ void __launch_bounds__(kNormThreads) norm_kernel(NormParams p) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int64_t row = blockIdx.x * kNormRows + threadIdx.x / kLanes;
  const bool exists = row < p.rows;
  const float* x = p.x + (exists ? row : 0) * p.x_stride;
  const NormStatistics s = norm_statistics(x, p.width, lane);
  if (!exists) return;
  float* out = p.out + row * p.out_stride;
  for (int64_t i = lane; i < p.width; i += kLanes) {
    out[i] = normalise(x[i], s.mean, s.scale, p.weight[i], p.bias[i]);
  }
}

}  // namespace

void launch_norm(const NormParams& p, void* stream) {
  if (p.rows == 0) return;
  const dim3 grid(static_cast<unsigned>((p.rows + kNormRows - 1) / kNormRows));
  launch("norm_kernel", norm_kernel, grid, kNormThreads, 0, stream, p);
}

void launch_linear(const LinearParams& p, void* stream) {
  const LinearShape shape{p.rows, p.depth, p.width, p.weight, p.bias};
  const RowsSink sink{p.out, p.out_stride, p.activation, p.residual, p.residual_stride};
  if (p.norm_weight == nullptr) {
    launch_linear_kernel("linear_kernel", shape, RowsSource{p.x, p.x_stride}, sink, stream);
  } else {
    const NormedSource source{p.x, p.x_stride, p.depth, p.norm_weight, p.norm_bias};
    launch_linear_kernel("linear_kernel", shape, source, sink, stream);
  }
}

}  // namespace groupedmixer::strict
