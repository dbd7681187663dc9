// SPDX-License-Identifier: MIT
//
// h_a and h_s on a GPU, with the bits of hyper.h. For .cu files and headers that only they include.
//
// Device transforms copy the weights of those of the CPU, once. They work on a whole picture, on
// scratch memory that take() takes from a layout, for a picture of the same size, and that others
// may use before and after. run() enqueues kernels on `stream`, a cudaStream_t, and does nothing
// else: it can be captured in a graph. Pointers are device pointers. All throw std::runtime_error
// if CUDA fails, constructors DeviceMemoryError if there is too little memory.

#pragma once

#include <cstdint>

#include "common/device_memory.h"
#include "strict/device_linear.h"
#include "transform/hyper.h"

namespace groupedmixer::transform {

class DeviceHyperAnalysis {
 public:
  explicit DeviceHyperAnalysis(const HyperAnalysis& transform);

  struct Scratch {
    float* even;  // what the first and the third layer read
    float* odd;   // what the second one reads
  };
  Scratch take(DeviceLayout& layout, int64_t height, int64_t width) const;

  void run(const float* scaled,  // [height, width, M]
           int64_t height, int64_t width,
           float* z,  // [ceil(height / 4), ceil(width / 4), N_z]
           const Scratch& scratch, void* stream) const;

 private:
  strict::DeviceLinear full_, half_, quarter_;
};

class DeviceHyperSynthesis {
 public:
  explicit DeviceHyperSynthesis(const HyperSynthesis& transform);

  struct Scratch {
    float* half;  // images at 1/2 of the latent's scale and at the latent's
    float* full;
  };
  // Of a latent of height x width positions.
  Scratch take(DeviceLayout& layout, int64_t height, int64_t width) const;

  void run(const float* z_hat,  // [ceil(height / 4), ceil(width / 4), N_z]
           int64_t height, int64_t width,
           float* psi,  // [height, width, d]
           const Scratch& scratch, void* stream) const;

 private:
  strict::DeviceLinear quarter_, half_, last_;
};

}  // namespace groupedmixer::transform
