// SPDX-License-Identifier: MIT

#include "transform/layers.h"

#include <cstring>

namespace groupedmixer::transform {

strict::PackedLinear load_layer(const WeightMap& weights, const std::string& name, int64_t width,
                                int64_t channels, int64_t side, const std::vector<int64_t>& order) {
  const float* weight = weights.get(name + ".weight", {width, channels, side, side});
  const float* bias = weights.get(name + ".bias", {width});
  if (order.empty()) return strict::pack_convolution(weight, bias, width, channels, side);
  const int64_t depth = channels * side * side;
  std::vector<float> ordered_weight, ordered_bias;
  ordered_weight.reserve(static_cast<size_t>(width * depth));
  ordered_bias.reserve(static_cast<size_t>(width));
  for (const int64_t output : order) {
    const float* row = weight + output * depth;
    ordered_weight.insert(ordered_weight.end(), row, row + depth);
    ordered_bias.push_back(bias[output]);
  }
  return strict::pack_convolution(ordered_weight.data(), ordered_bias.data(), width, channels,
                                  side);
}

std::vector<int64_t> shuffled_order(int64_t channels, int64_t side) {
  std::vector<int64_t> order;
  for (int64_t pixel = 0; pixel < side * side; ++pixel) {
    for (int64_t c = 0; c < channels; ++c) order.push_back(c * side * side + pixel);
  }
  return order;
}

void apply(const strict::PackedLinear& layer, const LayerCall& call) {
  strict::kernels().linear(params_of(layer, call));
}

void gather_windows(const ImagePart& image, int64_t stride, const Grid& grid, int64_t begin,
                    int64_t end, float* out) {
  constexpr int64_t kSide = 3;
  const int64_t channels = image.channels;
  int64_t row = begin / grid.columns, column = begin % grid.columns;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t left = (grid.left + column) * stride - 1;
    const int64_t first = std::max(left, int64_t{0}), last = std::min(left + kSide, image.width);
    for (int64_t k = 0; k < kSide; ++k, out += kSide * channels) {
      const int64_t y = (grid.top + row) * stride - 1 + k;
      if (y < 0 || y >= image.height) {
        std::fill(out, out + kSide * channels, 0.0f);
        continue;
      }
      const float* taps =
          image.data + ((y - image.top) * image.columns + (first - image.left)) * channels;
      float* inside = out + (first - left) * channels;
      float* behind = inside + (last - first) * channels;
      std::fill(out, inside, 0.0f);
      std::memcpy(inside, taps, static_cast<size_t>((last - first) * channels) * sizeof(float));
      std::fill(behind, out + kSide * channels, 0.0f);
    }
    if (++column == grid.columns) {
      column = 0;
      ++row;
    }
  }
}

}  // namespace groupedmixer::transform
