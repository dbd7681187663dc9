// SPDX-License-Identifier: MIT

#include <optional>
#include <tuple>

#include "entropy/symbols_checks.h"

namespace groupedmixer::entropy {
namespace {

std::tuple<Tensor, Tensor, Tensor> quantize_group_cpu(
    const Tensor& y,           // [...] float32
    const Tensor& mean,        // [...] float32
    const Tensor& raw_scale,   // [...] float32
    const Tensor& thresholds,  // [T] float32
    int64_t skip_below,
    std::optional<Tensor> dead_zone) {  // [T + 1] float32
  check_quantize_group(y, mean, raw_scale, thresholds, skip_below, dead_zone);
  Tensor symbols = empty_like_as(y, ScalarType::Short);
  Tensor indexes = empty_like_as(y, ScalarType::Byte);
  Tensor y_hat = empty_like_as(y, ScalarType::Float);
  check_finite(quantize_group(
      {y.const_data_ptr<float>(), mean.const_data_ptr<float>(), raw_scale.const_data_ptr<float>(),
       thresholds.const_data_ptr<float>(), pointer_or_null(dead_zone),
       symbols.mutable_data_ptr<int16_t>(), indexes.mutable_data_ptr<uint8_t>(),
       y_hat.mutable_data_ptr<float>(), y.numel(), thresholds.numel(), skip_below}));
  return {symbols, indexes, y_hat};
}

Tensor scale_indexes_cpu(const Tensor& raw_scale,     // [...] float32
                         const Tensor& mean,          // [...] float32
                         const Tensor& thresholds) {  // [T] float32
  check_scale_indexes(raw_scale, mean, thresholds);
  Tensor indexes = empty_like_as(raw_scale, ScalarType::Byte);
  check_finite(
      scale_indexes({raw_scale.const_data_ptr<float>(), mean.const_data_ptr<float>(),
                     thresholds.const_data_ptr<float>(), indexes.mutable_data_ptr<uint8_t>(),
                     raw_scale.numel(), thresholds.numel()}));
  return indexes;
}

Tensor dequantize_group_cpu(const Tensor& symbols,  // [...] int16
                            const Tensor& mean) {   // [...] float32
  check_dequantize_group(symbols, mean);
  Tensor y_hat = empty_like_as(mean, ScalarType::Float);
  dequantize_group({symbols.const_data_ptr<int16_t>(), mean.const_data_ptr<float>(),
                    y_hat.mutable_data_ptr<float>(), mean.numel()});
  return y_hat;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(groupedmixer, CPU, m) {
  m.impl("quantize_group", TORCH_BOX(&quantize_group_cpu));
  m.impl("scale_indexes", TORCH_BOX(&scale_indexes_cpu));
  m.impl("dequantize_group", TORCH_BOX(&dequantize_group_cpu));
}

}  // namespace groupedmixer::entropy
