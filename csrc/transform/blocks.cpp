// SPDX-License-Identifier: MIT

#include "transform/blocks.h"

#include "strict/kernels.h"
#include "transform/layers.h"

namespace groupedmixer::transform {
namespace {

constexpr int64_t kTaps = 9;

}  // namespace

BlockStack::BlockStack(const WeightMap& weights, const std::string& prefix, int64_t first,
                       int64_t depth, int64_t channels)
    : channels_(channels) {
  for (int64_t i = 0; i < depth; ++i) {
    const std::string name = prefix + std::to_string(first + i);
    Block block;
    block.enter = load_layer(weights, name + ".spatial.0", channels, channels, 1);
    const float* taps = weights.get(name + ".spatial.2.weight", {channels, 1, 3, 3});
    const float* bias = weights.get(name + ".spatial.2.bias", {channels});
    for (int64_t t = 0; t < kTaps; ++t) {
      for (int64_t c = 0; c < channels; ++c) block.taps.push_back(taps[c * kTaps + t]);
    }
    block.taps_bias.assign(bias, bias + channels);
    block.mix = load_layer(weights, name + ".spatial.3", channels, channels, 1);
    block.widen = load_layer(weights, name + ".pointwise.0", 2 * channels, channels, 1);
    block.narrow = load_layer(weights, name + ".pointwise.2", channels, 2 * channels, 1);
    blocks_.push_back(std::move(block));
  }
}

void BlockStack::open(const float* x, int64_t pixels, float* seen) const {
  if (blocks_.empty()) return;
  apply(blocks_.front().enter,
        {x, channels_, seen, channels_, pixels, strict::Activation::kLeakyRelu});
}

int64_t BlockStack::scratch_size(int64_t rows, int64_t width) const {
  return ((rows + 2) * width + 2 * kChainPixels) * channels_;
}

void BlockStack::run(int64_t block, const BlockRows& part, float* scratch) const {
  const Block& b = blocks_[static_cast<size_t>(block)];
  const Block* next = block + 1 < depth() ? &b + 1 : nullptr;
  const int64_t height = part.above + part.rows + part.below;
  strict::kernels().depthwise3x3({part.seen, b.taps.data(), b.taps_bias.data(), scratch, height,
                                  part.width, channels_, part.above, part.above + part.rows});
  const float* spread = scratch + part.above * part.width * channels_;
  float* hidden = scratch + height * part.width * channels_;
  for_parts(0, part.rows * part.width, kChainPixels, [&](int64_t begin, int64_t end) {
    const int64_t pixels = end - begin;
    float* x = part.x + begin * channels_;
    apply(b.mix, {spread + begin * channels_, channels_, x, channels_, pixels,
                  strict::Activation::kNone, x});
    apply(b.widen, {x, channels_, hidden, 2 * channels_, pixels, strict::Activation::kLeakyRelu});
    apply(b.narrow, {hidden, 2 * channels_, x, channels_, pixels, strict::Activation::kNone, x});
    if (next != nullptr) {
      apply(next->enter, {x, channels_, part.next + begin * channels_, channels_, pixels,
                          strict::Activation::kLeakyRelu});
    }
  });
}

}  // namespace groupedmixer::transform
