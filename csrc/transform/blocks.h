// SPDX-License-Identifier: MIT
//
// DepthConvBlocks at one scale:
//
//   x --> x + 1x1(dw3x3(act(1x1(x)))) --> x + 1x1(act(1x1(x)))
//
// A block is cut behind its first 1x1, where the next layer looks at neighbours: what one call
// computes from rows of block b ends with the first 1x1 of block b + 1. So members of a team meet
// once a block.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/aligned.h"
#include "common/weight_map.h"
#include "strict/packed.h"

namespace groupedmixer::transform {

// Pixels that go through a chain of 1x1 layers together, to stay in the second-level cache.
constexpr int64_t kChainPixels = 96;

// Some rows of a block.
struct BlockRows {
  const float* seen;     // [above + rows + below, width, channels], act(1x1(x))
  int64_t above, below;  // rows there to be looked at: 0 at the border of the image, else 1
  int64_t rows, width;
  float* x;     // [rows, width, channels], updated in place
  float* next;  // [rows, width, channels], what the next block sees; the last block leaves it
};

class BlockStack {
 public:
  // Blocks prefix + first, prefix + (first + 1), ...
  BlockStack(const WeightMap& weights, const std::string& prefix, int64_t first, int64_t depth,
             int64_t channels);

  struct Block {
    strict::PackedLinear enter;  // spatial.0
    AlignedVector taps;          // spatial.2, [9, channels]
    AlignedVector taps_bias;     // [channels]
    strict::PackedLinear mix;    // spatial.3
    strict::PackedLinear widen, narrow;
  };

  int64_t depth() const { return static_cast<int64_t>(blocks_.size()); }
  int64_t channels() const { return channels_; }
  const std::vector<Block>& blocks() const { return blocks_; }

  // What the first block sees of x. Nothing if there is none.
  void open(const float* x,  // [pixels, channels]
            int64_t pixels,
            float* seen) const;  // [pixels, channels]

  int64_t scratch_size(int64_t rows, int64_t width) const;
  void run(int64_t block, const BlockRows& part, float* scratch) const;

 private:
  int64_t channels_;
  std::vector<Block> blocks_;
};

}  // namespace groupedmixer::transform
