// SPDX-License-Identifier: MIT

#include "strict/lanes_isa.h"
#include "strict/variant.h"

namespace groupedmixer::strict::GROUPEDMIXER_VARIANT {
namespace {

constexpr int kSide = 3;
constexpr int kTaps = kSide * kSide;

alignas(64) constexpr float kZeros[kLanes] = {};

// The three rows under a window. A row outside the image is a step of 0 over zeros.
struct Rows {
  const float* x[kSide];
  int64_t step[kSide];
};

// Sixteen channels of a pixel.
GROUPEDMIXER_STRICT Lanes taps_sum(const float* const taps[kTaps], const Lanes weight[kTaps],
                                   Lanes sum) {
  for (int t = 0; t < kTaps; ++t) sum = fused(load(taps[t]), weight[t], sum);
  return sum;
}

void lanes_row(const DepthwiseParams& p, const Rows& rows, int64_t channel, float* out) {
  Lanes weight[kTaps];
  for (int t = 0; t < kTaps; ++t) weight[t] = load(p.weight + t * p.channels + channel);
  const Lanes bias = load(p.bias + channel);
  const auto at_border = [&](int64_t column) {
    const float* taps[kTaps];
    for (int i = 0; i < kSide; ++i) {
      for (int j = 0; j < kSide; ++j) {
        const int64_t from = column + j - 1;
        taps[i * kSide + j] =
            from < 0 || from >= p.width ? kZeros : rows.x[i] + from * rows.step[i];
      }
    }
    store(out + column * p.channels, taps_sum(taps, weight, bias));
  };
  at_border(0);
  for (int64_t column = 1; column < p.width - 1; ++column) {
    const float* taps[kTaps];
    for (int i = 0; i < kSide; ++i) {
      for (int j = 0; j < kSide; ++j) {
        taps[i * kSide + j] = rows.x[i] + (column + j - 1) * rows.step[i];
      }
    }
    store(out + column * p.channels, taps_sum(taps, weight, bias));
  }
  if (p.width > 1) at_border(p.width - 1);
}

// The channels that do not fill Lanes.
void scalar_row(const DepthwiseParams& p, int64_t row, int64_t channel, float* out) {
  for (int64_t column = 0; column < p.width; ++column) {
    float sum = p.bias[channel];
    for (int t = 0; t < kTaps; ++t) {
      const int64_t y = row + t / kSide - 1, x = column + t % kSide - 1;
      const bool inside = y >= 0 && y < p.height && x >= 0 && x < p.width;
      const float tap = inside ? p.x[(y * p.width + x) * p.channels + channel] : 0.0f;
      sum = strict::fused(tap, p.weight[t * p.channels + channel], sum);
    }
    out[column * p.channels] = sum;
  }
}

}  // namespace

void depthwise3x3(const DepthwiseParams& p) {
  const int64_t pitch = p.width * p.channels;
  for (int64_t row = p.row_begin; row < p.row_end; ++row) {
    float* out = p.out + row * pitch;
    int64_t channel = 0;
    for (; channel + kLanes <= p.channels; channel += kLanes) {
      Rows rows;
      for (int i = 0; i < kSide; ++i) {
        const int64_t y = row + i - 1;
        const bool inside = y >= 0 && y < p.height;
        rows.x[i] = inside ? p.x + y * pitch + channel : kZeros;
        rows.step[i] = inside ? p.channels : 0;
      }
      lanes_row(p, rows, channel, out + channel);
    }
    for (; channel < p.channels; ++channel) scalar_row(p, row, channel, out + channel);
  }
}

}  // namespace groupedmixer::strict::GROUPEDMIXER_VARIANT
