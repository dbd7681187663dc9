// SPDX-License-Identifier: MIT
//
// Weights in the order in which the GEMM reads them: panels of 32 columns, each [depth][32], with
// zeros behind the last column. Columns do not mix, so the zeros change nothing.

#pragma once

#include <cstdint>
#include <vector>

#include "common/aligned.h"
#include "strict/kernels.h"

namespace groupedmixer::strict {

// A linear layer or a convolution over gathered taps.
struct PackedLinear {
  int64_t depth = 0;
  int64_t width = 0;
  AlignedVector weight;  // [ceil(width / 32), depth, 32]
  AlignedVector bias;    // [ceil(width / 32) * 32]
};

constexpr int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Floats of the packed weight.
constexpr int64_t packed_size(int64_t width, int64_t depth) {
  return round_up(width, kPanel) * depth;
}

// `out` has packed_size(width, depth) floats.
void pack_weight(const float* weight,  // [width, depth]
                 int64_t width, int64_t depth, float* out);

PackedLinear pack_linear(const float* weight,  // [width, depth]
                         const float* bias,    // [width]
                         int64_t width, int64_t depth);

// A convolution's weight as that of a linear layer over taps in (row, column, channel) order.
PackedLinear pack_convolution(const float* weight,  // [width, channels, side, side]
                              const float* bias,    // [width]
                              int64_t width, int64_t channels, int64_t side);

}  // namespace groupedmixer::strict
