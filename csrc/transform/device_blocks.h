// SPDX-License-Identifier: MIT
//
// DepthConvBlocks at one scale on a GPU, on a whole image at once, with the bits of blocks.h. For
// .cu files and headers that only they include. How to run a transform: see device_hyper.h.

#pragma once

#include <cstdint>
#include <vector>

#include "common/device_memory.h"
#include "strict/device_linear.h"
#include "transform/blocks.h"

namespace groupedmixer::transform {

class DeviceBlockStack {
 public:
  explicit DeviceBlockStack(const BlockStack& stack);

  // Floats.
  int64_t scratch_size(int64_t pixels) const;

  void run(float* x,  // [height, width, channels], updated in place
           int64_t height, int64_t width, float* scratch, void* stream) const;

 private:
  struct Block {
    explicit Block(const BlockStack::Block& block);

    strict::DeviceLinear enter;
    DeviceArray<float> taps, taps_bias;
    strict::DeviceLinear mix, widen, narrow;
  };
  int64_t channels_;
  std::vector<Block> blocks_;
};

}  // namespace groupedmixer::transform
