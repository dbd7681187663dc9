// SPDX-License-Identifier: MIT
//
// Tables stored at whole quality levels (docs/numerics.md, section 4).

#pragma once

#include <algorithm>
#include <cstdint>

#include "strict/math.h"

namespace groupedmixer {

constexpr int64_t kLevels = 8;
constexpr int64_t kQualitySteps = 256;  // between two levels

inline void interpolate_levels(const float* table,  // [kLevels, count]
                               int64_t count, int64_t quality, float* out) {
  const int64_t lower = std::min(quality / kQualitySteps, kLevels - 2);
  const float t = static_cast<float>(quality - lower * kQualitySteps) / kQualitySteps;
  const float* e0 = table + lower * count;
  const float* e1 = e0 + count;
  for (int64_t i = 0; i < count; ++i) out[i] = strict::fused(t, e1[i] - e0[i], e0[i]);
}

}  // namespace groupedmixer
