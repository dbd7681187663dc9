// SPDX-License-Identifier: MIT

#include "strict/lanes_isa.h"
#include "strict/variant.h"

namespace groupedmixer::strict::GROUPEDMIXER_VARIANT {
namespace {

constexpr int kSide = 3;

// Pixels side by side that share the loads of weights, and of taps where their windows overlap.
constexpr int kGroup = 4;

bool inside(const DepthwiseParams& p, int64_t y, int64_t x) {
  return y >= 0 && y < p.height && x >= 0 && x < p.width;
}

// Sixteen channels of pixels (row, column), (row, column + 1) ...
template <int Pixels, bool kBorder>
GROUPEDMIXER_STRICT void lanes(const DepthwiseParams& p, int64_t row, int64_t column,
                               int64_t channel) {
  const int64_t pitch = p.width * p.channels;
  const Lanes bias = load(p.bias + channel);
  Lanes sum[Pixels];
  for (int g = 0; g < Pixels; ++g) sum[g] = bias;
  for (int i = 0; i < kSide; ++i) {
    const int64_t y = row + i - 1;
    Lanes taps[Pixels + kSide - 1];
    for (int j = 0; j < Pixels + kSide - 1; ++j) {
      const int64_t x = column + j - 1;
      if (!kBorder || inside(p, y, x)) {
        taps[j] = load(p.x + y * pitch + x * p.channels + channel);
      } else {
        taps[j] = broadcast(0.0f);
      }
    }
    for (int j = 0; j < kSide; ++j) {
      const Lanes weight = load(p.weight + (i * kSide + j) * p.channels + channel);
      for (int g = 0; g < Pixels; ++g) sum[g] = fused(taps[g + j], weight, sum[g]);
    }
  }
  for (int g = 0; g < Pixels; ++g) {
    store(p.out + row * pitch + (column + g) * p.channels + channel, sum[g]);
  }
}

// A channel that is left over.
float scalar(const DepthwiseParams& p, int64_t row, int64_t column, int64_t channel) {
  float sum = p.bias[channel];
  for (int i = 0; i < kSide; ++i) {
    for (int j = 0; j < kSide; ++j) {
      const int64_t y = row + i - 1, x = column + j - 1;
      const float tap = inside(p, y, x) ? p.x[(y * p.width + x) * p.channels + channel] : 0.0f;
      sum = strict::fused(tap, p.weight[(i * kSide + j) * p.channels + channel], sum);
    }
  }
  return sum;
}

template <int Pixels>
void all_channels(const DepthwiseParams& p, int64_t row, int64_t column) {
  const bool border = !inside(p, row - 1, column - 1) || !inside(p, row + 1, column + Pixels);
  int64_t channel = 0;
  for (; channel + kLanes <= p.channels; channel += kLanes) {
    if (border) {
      lanes<Pixels, true>(p, row, column, channel);
    } else {
      lanes<Pixels, false>(p, row, column, channel);
    }
  }
  for (; channel < p.channels; ++channel) {
    for (int64_t x = column; x < column + Pixels; ++x) {
      p.out[(row * p.width + x) * p.channels + channel] = scalar(p, row, x, channel);
    }
  }
}

}  // namespace

void depthwise3x3(const DepthwiseParams& params) {
  const DepthwiseParams p = params;  // what is written cannot change it
  for (int64_t row = p.row_begin; row < p.row_end; ++row) {
    int64_t column = 0;
    for (; column + kGroup <= p.width; column += kGroup) all_channels<kGroup>(p, row, column);
    for (; column < p.width; ++column) all_channels<1>(p, row, column);
  }
}

}  // namespace groupedmixer::strict::GROUPEDMIXER_VARIANT
