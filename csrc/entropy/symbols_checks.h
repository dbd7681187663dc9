// SPDX-License-Identifier: MIT
//
// The checks that the CPU and CUDA adapters of symbols.h share.

#pragma once

#include <optional>

#include "common/checks.h"
#include "entropy/symbols.h"

namespace groupedmixer::entropy {

// A float32 tensor of the reference's shape and device.
inline void check_plane(const Tensor& tensor, const char* name, const Tensor& like,
                        const char* like_name) {
  check_dtype(tensor, name, ScalarType::Float);
  check_same_device(tensor, name, like, like_name);
  check_same_shape(tensor, name, like, like_name);
  check_contiguous(tensor, name);
}

inline void check_thresholds(const Tensor& thresholds, const Tensor& like, const char* like_name) {
  check_dtype(thresholds, "thresholds", ScalarType::Float);
  check_same_device(thresholds, "thresholds", like, like_name);
  GROUPEDMIXER_CHECK(thresholds.dim() == 1 && thresholds.size(0) <= kMaxThresholds,
                     "thresholds must be [T] with T <= ", kMaxThresholds, ", got ",
                     shape_of(thresholds));
  check_contiguous(thresholds, "thresholds");
}

inline void check_dead_zone(const std::optional<Tensor>& dead_zone, const Tensor& thresholds) {
  if (!dead_zone) return;
  check_dtype(*dead_zone, "dead_zone", ScalarType::Float);
  check_same_device(*dead_zone, "dead_zone", thresholds, "thresholds");
  GROUPEDMIXER_CHECK(dead_zone->dim() == 1 && dead_zone->size(0) == thresholds.size(0) + 1,
                     "dead_zone must be [", thresholds.size(0) + 1, "] (thresholds + 1), got ",
                     shape_of(*dead_zone));
  check_contiguous(*dead_zone, "dead_zone");
}

inline const float* pointer_or_null(const std::optional<Tensor>& tensor) {
  return tensor ? tensor->const_data_ptr<float>() : nullptr;
}

inline void check_finite(uint32_t non_finite) {
  GROUPEDMIXER_CHECK((non_finite & kNonFiniteY) == 0, "y must be finite, got infinity or NaN");
  GROUPEDMIXER_CHECK((non_finite & kNonFiniteMean) == 0,
                     "mean must be finite, got infinity or NaN");
  GROUPEDMIXER_CHECK((non_finite & kNonFiniteRawScale) == 0,
                     "raw_scale must be finite, got infinity or NaN");
}

inline void check_quantize_group(const Tensor& y, const Tensor& mean, const Tensor& raw_scale,
                                 const Tensor& thresholds, int64_t skip_below,
                                 const std::optional<Tensor>& dead_zone) {
  check_plane(y, "y", y, "y");
  check_plane(mean, "mean", y, "y");
  check_plane(raw_scale, "raw_scale", y, "y");
  check_thresholds(thresholds, y, "y");
  GROUPEDMIXER_CHECK(skip_below >= 0 && skip_below <= thresholds.size(0) + 1,
                     "skip_below must be 0 .. ", thresholds.size(0) + 1, " (thresholds + 1), got ",
                     skip_below);
  check_dead_zone(dead_zone, thresholds);
}

inline void check_scale_indexes(const Tensor& raw_scale, const Tensor& mean,
                                const Tensor& thresholds) {
  check_plane(raw_scale, "raw_scale", raw_scale, "raw_scale");
  check_plane(mean, "mean", raw_scale, "raw_scale");
  check_thresholds(thresholds, raw_scale, "raw_scale");
}

inline void check_dequantize_group(const Tensor& symbols, const Tensor& mean) {
  check_dtype(symbols, "symbols", ScalarType::Short);
  check_contiguous(symbols, "symbols");
  check_plane(mean, "mean", symbols, "symbols");
}

}  // namespace groupedmixer::entropy
