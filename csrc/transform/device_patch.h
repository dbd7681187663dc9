// SPDX-License-Identifier: MIT
//
// g_a and g_s of the `patch` transforms on a GPU, pixels included, with the bits of patch.h. For
// .cu files and headers that only they include. How to run a transform: see device_hyper.h.

#pragma once

#include <cstdint>

#include "common/device_memory.h"
#include "strict/device_linear.h"
#include "transform/device_blocks.h"
#include "transform/patch.h"

namespace groupedmixer::transform {

class DevicePatchAnalysis {
 public:
  explicit DevicePatchAnalysis(const PatchAnalysis& transform);

  struct Scratch {
    float* wide;    // the image at 1/8
    float* narrow;  // ... and at 1/16
    float* blocks;
  };
  Scratch take(DeviceLayout& layout, int64_t latent_height, int64_t latent_width) const;

  void run(const uint8_t* rgb,  // [height, width, 3]
           int64_t height, int64_t width, int64_t latent_height, int64_t latent_width,
           float* y,  // [latent_height, latent_width, M]
           const Scratch& scratch, void* stream) const;

 private:
  strict::DeviceLinear linear_, first_, join_, last_;
  DeviceBlockStack early_, late_;
};

class DevicePatchSynthesis {
 public:
  explicit DevicePatchSynthesis(const PatchSynthesis& transform);

  struct Scratch {
    float* narrow;  // the image at 1/16
    float* wide;    // ... and at 1/8
    float* blocks;
    float* samples;  // [2 latent_height, 2 latent_width, 8, 8, 3], in the place of `blocks`
  };
  Scratch take(DeviceLayout& layout, int64_t latent_height, int64_t latent_width) const;

  void run(const float* y_hat,  // [latent_height, latent_width, M], without gains
           int64_t latent_height, int64_t latent_width, int64_t height, int64_t width,
           bool grey,     // all samples of a pixel are the mean of its colours
           uint8_t* rgb,  // [height, width, 3]
           const Scratch& scratch, void* stream) const;

 private:
  strict::DeviceLinear linear_, first_, split_, last_;
  DeviceBlockStack late_, early_;
};

}  // namespace groupedmixer::transform
