// SPDX-License-Identifier: MIT

#include "entropy/scale_index.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

namespace groupedmixer::entropy {
namespace {

// Positive floats are ordered as their bits. A bin is what exponent and 4 bits of the mantissa
// share, a sixteenth of an octave: finer than compressai's own thresholds, so that one comparison
// finds the place within a bin.
constexpr int kBinShift = 23 - 4;

uint32_t bin_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits >> kBinShift;
}

}  // namespace

ScaleIndex::ScaleIndex(const float* thresholds, int64_t count, float bound)
    : bound_(bound), thresholds_(thresholds, thresholds + count) {
  for (int64_t i = 0; i < count; ++i) {
    const float least = i == 0 ? std::numeric_limits<float>::min() : thresholds[i - 1];
    if (!(thresholds[i] >= least && thresholds[i] < std::numeric_limits<float>::max())) {
      throw std::invalid_argument("thresholds must be positive, finite and ascending, got " +
                                  std::to_string(thresholds[i]) + " at position " +
                                  std::to_string(i));
    }
  }
  thresholds_.push_back(std::numeric_limits<float>::infinity());
  if (count == 0) return;
  first_ = thresholds[0];
  above_last_ = std::nextafter(thresholds[count - 1], std::numeric_limits<float>::max());
  first_bin_ = bin_of(first_);
  std::vector<int32_t> in_bin(bin_of(above_last_) - first_bin_ + 1);
  for (int64_t i = 0; i < count; ++i) ++in_bin[bin_of(thresholds[i]) - first_bin_];
  int32_t below = 0;
  for (const int32_t number : in_bin) {
    below_bins_.push_back(below);
    below += number;
    max_per_bin_ = std::max(max_per_bin_, number);
  }
}

void ScaleIndex::operator()(const float* scales, int64_t count, int32_t* indexes) const {
  if (below_bins_.empty()) {
    std::fill(indexes, indexes + count, 0);
    return;
  }
  const float* thresholds = thresholds_.data();
  const int32_t* below_bins = below_bins_.data();
  for (int64_t i = 0; i < count; ++i) {
    float scale = scales[i] < bound_ ? bound_ : scales[i];
    scale = scale <= above_last_ ? scale : above_last_;  // NaN as well
    scale = scale < first_ ? first_ : scale;
    int32_t index = below_bins[bin_of(scale) - first_bin_];
    for (int32_t step = 0; step < max_per_bin_; ++step) index += scale > thresholds[index];
    indexes[i] = index;
  }
}

}  // namespace groupedmixer::entropy
