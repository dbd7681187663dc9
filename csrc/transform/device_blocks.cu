// SPDX-License-Identifier: MIT

#include "strict/convolution_cuda.h"
#include "transform/device_blocks.h"
#include "transform/device_layers.h"

namespace groupedmixer::transform {

using strict::Activation;

DeviceBlockStack::Block::Block(const BlockStack::Block& block)
    : enter(block.enter),
      taps(block.taps),
      taps_bias(block.taps_bias),
      mix(block.mix),
      widen(block.widen),
      narrow(block.narrow) {}

DeviceBlockStack::DeviceBlockStack(const BlockStack& stack)
    : channels_(stack.channels()), blocks_(stack.blocks().begin(), stack.blocks().end()) {}

int64_t DeviceBlockStack::scratch_size(int64_t pixels) const {
  return blocks_.empty() ? 0 : 2 * pixels * channels_;
}

void DeviceBlockStack::run(float* x, int64_t height, int64_t width, float* scratch,
                           void* stream) const {
  const int64_t pixels = height * width, wide = 2 * channels_;
  float* seen = scratch;                         // [height, width, channels]
  float* spread = scratch + pixels * channels_;  // [height, width, channels]
  float* hidden = scratch;                       // [height, width, 2 channels]
  for (const Block& b : blocks_) {
    launch_layer(b.enter, {x, channels_, seen, channels_, pixels, Activation::kLeakyRelu}, stream);
    strict::launch_depthwise3x3(
        {seen, b.taps.data(), b.taps_bias.data(), spread, height, width, channels_, 0, height},
        stream);
    launch_layer(b.mix, {spread, channels_, x, channels_, pixels, Activation::kNone, x}, stream);
    launch_layer(b.widen, {x, channels_, hidden, wide, pixels, Activation::kLeakyRelu}, stream);
    launch_layer(b.narrow, {hidden, wide, x, channels_, pixels, Activation::kNone, x}, stream);
  }
}

}  // namespace groupedmixer::transform
