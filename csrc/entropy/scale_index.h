// SPDX-License-Identifier: MIT
//
// compressai's GaussianConditional.build_indexes in one pass: the number of thresholds below a
// scale, where compressai goes over all scales once a threshold.

#pragma once

#include <cstdint>
#include <vector>

namespace groupedmixer::entropy {

class ScaleIndex {
 public:
  // Throws std::invalid_argument unless the thresholds are positive, finite and ascending. Scales
  // count as `bound` at least.
  ScaleIndex(const float* thresholds,  // [count]
             int64_t count, float bound);

  // index = number of thresholds t for which not scale <= t; so NaN is above all.
  void operator()(const float* scales,  // [count]
                  int64_t count,
                  int32_t* indexes) const;  // [count]

 private:
  float bound_;
  float first_ = 0;  // scales are clamped to first_ .. above_last_, which keeps their indexes
  float above_last_ = 0;
  uint32_t first_bin_ = 0;
  int32_t max_per_bin_ = 0;
  std::vector<float> thresholds_;    // and an infinity
  std::vector<int32_t> below_bins_;  // thresholds in the bins below each
};

}  // namespace groupedmixer::entropy
