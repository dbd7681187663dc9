// SPDX-License-Identifier: MIT

#include "strict/packed.h"

#include <algorithm>

namespace groupedmixer::strict {

void pack_weight(const float* weight, int64_t width, int64_t depth, float* out) {
  for (int64_t begin = 0; begin < width; begin += kPanel) {
    const int64_t columns = std::min(kPanel, width - begin);
    for (int64_t k = 0; k < depth; ++k, out += kPanel) {
      for (int64_t c = 0; c < columns; ++c) out[c] = weight[(begin + c) * depth + k];
      std::fill(out + columns, out + kPanel, 0.0f);
    }
  }
}

PackedLinear pack_linear(const float* weight, const float* bias, int64_t width, int64_t depth) {
  PackedLinear packed;
  packed.depth = depth;
  packed.width = width;
  packed.weight.resize(static_cast<size_t>(packed_size(width, depth)));
  pack_weight(weight, width, depth, packed.weight.data());
  packed.bias.resize(static_cast<size_t>(round_up(width, kPanel)));
  std::copy(bias, bias + width, packed.bias.data());
  return packed;
}

PackedLinear pack_convolution(const float* weight, const float* bias, int64_t width,
                              int64_t channels, int64_t side) {
  const int64_t taps = side * side;
  AlignedVector flat(static_cast<size_t>(width * channels * taps));
  for (int64_t n = 0; n < width; ++n) {
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t t = 0; t < taps; ++t) {
        flat[static_cast<size_t>((n * taps + t) * channels + c)] =
            weight[(n * channels + c) * taps + t];
      }
    }
  }
  return pack_linear(flat.data(), bias, width, channels * taps);
}

}  // namespace groupedmixer::strict
