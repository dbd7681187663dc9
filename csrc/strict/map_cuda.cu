// SPDX-License-Identifier: MIT

#include "common/cuda_launch.h"
#include "strict/map_cuda.h"

namespace groupedmixer::strict {
namespace {

constexpr int kThreads = 256;

struct Compand {
  __device__ static float of(float x, const float*) { return compand(x); }
};

struct LeakyRelu {
  __device__ static float of(float x, const float*) { return leaky_relu(x); }
};

struct HalfTanh {
  __device__ static float of(float x, const float* out) {
    return fused(hyperbolic_tangent(x), 0.5f, *out);
  }
};

template <typename Function>
__global__ void __launch_bounds__(kThreads) map_kernel(MapParams p) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < p.count;
       i += step) {
    p.out[i] = Function::of(p.x[i], p.out + i);
  }
}

template <typename Function>
void launch_map(const char* name, const MapParams& p, void* stream) {
  if (p.count == 0) return;
  launch(name, map_kernel<Function>, grid_size(p.count, kThreads), kThreads, 0, stream, p);
}

}  // namespace

void launch_compand(const MapParams& params, void* stream) {
  launch_map<Compand>("compand", params, stream);
}

void launch_leaky_relu(const MapParams& params, void* stream) {
  launch_map<LeakyRelu>("leaky_relu", params, stream);
}

void launch_half_tanh(const MapParams& params, void* stream) {
  launch_map<HalfTanh>("half_tanh", params, stream);
}

}  // namespace groupedmixer::strict
