// SPDX-License-Identifier: MIT
//
// The operators that check for numbers that are not finite wait for the stream: only then is there
// an error to raise. Native loops that must not wait use the launchers.

#include <optional>
#include <tuple>

#include "common/cuda_memory.h"
#include "common/torch_cuda.h"
#include "entropy/symbols_checks.h"

namespace groupedmixer::entropy {
namespace {

using torch::stable::accelerator::DeviceGuard;

// A cleared device word for NonFinite bits.
class NonFiniteFlags {
 public:
  NonFiniteFlags(const Tensor& like, void* stream)
      : word_(torch::stable::new_empty(like, {1}, ScalarType::Int)), stream_(stream) {
    clear_device_word(get(), stream_);
  }
  uint32_t* get() const { return reinterpret_cast<uint32_t*>(word_.mutable_data_ptr<int32_t>()); }
  uint32_t read() const { return read_device_word(get(), stream_); }

 private:
  Tensor word_;  // [1] int32
  void* stream_;
};

std::tuple<Tensor, Tensor, Tensor> quantize_group_cuda(
    const Tensor& y,           // [...] float32
    const Tensor& mean,        // [...] float32
    const Tensor& raw_scale,   // [...] float32
    const Tensor& thresholds,  // [T] float32
    int64_t skip_below,
    std::optional<Tensor> dead_zone) {  // [T + 1] float32
  check_quantize_group(y, mean, raw_scale, thresholds, skip_below, dead_zone);
  const DeviceGuard guard(y.get_device_index());
  void* stream = current_cuda_stream(y);
  Tensor symbols = empty_like_as(y, ScalarType::Short);
  Tensor indexes = empty_like_as(y, ScalarType::Byte);
  Tensor y_hat = empty_like_as(y, ScalarType::Float);
  const NonFiniteFlags flags(y, stream);
  launch_quantize_group(
      {y.const_data_ptr<float>(), mean.const_data_ptr<float>(), raw_scale.const_data_ptr<float>(),
       thresholds.const_data_ptr<float>(), pointer_or_null(dead_zone),
       symbols.mutable_data_ptr<int16_t>(), indexes.mutable_data_ptr<uint8_t>(),
       y_hat.mutable_data_ptr<float>(), y.numel(), thresholds.numel(), skip_below},
      flags.get(), stream);
  check_finite(flags.read());
  return {symbols, indexes, y_hat};
}

Tensor scale_indexes_cuda(const Tensor& raw_scale,     // [...] float32
                          const Tensor& mean,          // [...] float32
                          const Tensor& thresholds) {  // [T] float32
  check_scale_indexes(raw_scale, mean, thresholds);
  const DeviceGuard guard(raw_scale.get_device_index());
  void* stream = current_cuda_stream(raw_scale);
  Tensor indexes = empty_like_as(raw_scale, ScalarType::Byte);
  const NonFiniteFlags flags(raw_scale, stream);
  launch_scale_indexes({raw_scale.const_data_ptr<float>(), mean.const_data_ptr<float>(),
                        thresholds.const_data_ptr<float>(), indexes.mutable_data_ptr<uint8_t>(),
                        raw_scale.numel(), thresholds.numel()},
                       flags.get(), stream);
  check_finite(flags.read());
  return indexes;
}

Tensor dequantize_group_cuda(const Tensor& symbols,  // [...] int16
                             const Tensor& mean) {   // [...] float32
  check_dequantize_group(symbols, mean);
  const DeviceGuard guard(mean.get_device_index());
  Tensor y_hat = empty_like_as(mean, ScalarType::Float);
  launch_dequantize_group({symbols.const_data_ptr<int16_t>(), mean.const_data_ptr<float>(),
                           y_hat.mutable_data_ptr<float>(), mean.numel()},
                          current_cuda_stream(mean));
  return y_hat;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(groupedmixer, CUDA, m) {
  m.impl("quantize_group", TORCH_BOX(&quantize_group_cuda));
  m.impl("scale_indexes", TORCH_BOX(&scale_indexes_cuda));
  m.impl("dequantize_group", TORCH_BOX(&dequantize_group_cuda));
}

}  // namespace groupedmixer::entropy
