// SPDX-License-Identifier: MIT
//
// The strict kernels for Python, for CUDA: the bits of the CPU. None waits for the stream, so all
// can be captured in a graph.

#include <cstdint>
#include <limits>
#include <optional>
#include <string>

#include "common/torch_cuda.h"
#include "strict/convolution_cuda.h"
#include "strict/cuda.h"
#include "strict/map_cuda.h"
#include "strict/strict_checks.h"

namespace groupedmixer::strict {
namespace {

using torch::stable::accelerator::DeviceGuard;

// To the end of the last panel.
int64_t missing_rows(int64_t rows) { return round_up(rows, kPanel) - rows; }

// A bias that can be read to the end of its last panel.
Tensor panel_bias(const Tensor& bias) {  // [N]
  const int64_t missing = missing_rows(bias.size(0));
  return missing == 0 ? bias : torch::stable::pad(bias, {0, missing});
}

// Four weights are loaded at once.
void check_aligned(const Tensor& packed) {
  constexpr uintptr_t kAlignment = 4 * sizeof(float);
  GROUPEDMIXER_CHECK(reinterpret_cast<uintptr_t>(packed.const_data_ptr()) % kAlignment == 0,
                     "packed must begin at a multiple of ", kAlignment,
                     " bytes on CUDA, got a part of another tensor; call .clone()");
}

Tensor pack_weight_cuda(const Tensor& weight) {  // [N, K] float32
  check_pack_weight(weight);
  const DeviceGuard guard(weight.get_device_index());
  const int64_t depth = weight.size(1), missing = missing_rows(weight.size(0));
  const int64_t panels = (weight.size(0) + missing) / kPanel;
  const Tensor padded = torch::stable::pad(weight, {0, 0, 0, missing});
  const Tensor rows = torch::stable::view(padded, {panels, kPanel, depth});
  Tensor packed = torch::stable::new_empty(weight, {panels, depth, kPanel}, ScalarType::Float);
  return torch::stable::copy_(packed, torch::stable::transpose(rows, 1, 2));
}

void run_linear_into(const Tensor& x, const Tensor& packed, const Tensor& bias,
                     const std::string& activation, const std::optional<Tensor>& residual,
                     const std::optional<Tensor>& norm_weight,
                     const std::optional<Tensor>& norm_bias, const Tensor& out) {
  check_aligned(packed);
  const Tensor start = panel_bias(bias);
  launch_linear(linear_params(x, packed, start.const_data_ptr<float>(), bias.size(0), activation,
                              residual, norm_weight, norm_bias, out),
                current_cuda_stream(x));
}

Tensor linear_cuda(const Tensor& x,       // [..., K] float32
                   const Tensor& packed,  // [ceil(N / 32), K, 32] float32
                   const Tensor& bias,    // [N] float32
                   const std::string& activation,
                   const std::optional<Tensor>& residual,     // [..., N] float32
                   const std::optional<Tensor>& norm_weight,  // [K] float32
                   const std::optional<Tensor>& norm_bias) {  // [K] float32
  check_linear(x, packed, bias, activation, residual, norm_weight, norm_bias);
  const DeviceGuard guard(x.get_device_index());
  Tensor y = empty_with_last(x, bias.size(0));
  run_linear_into(x, packed, bias, activation, residual, norm_weight, norm_bias, y);
  return y;
}

void linear_into_cuda(const Tensor& x,       // [..., K] float32
                      const Tensor& packed,  // [ceil(N / 32), K, 32] float32
                      const Tensor& bias,    // [N] float32
                      const std::string& activation,
                      const std::optional<Tensor>& residual,     // [..., N] float32
                      const std::optional<Tensor>& norm_weight,  // [K] float32
                      const std::optional<Tensor>& norm_bias,    // [K] float32
                      const Tensor& out) {                       // [..., N] float32
  check_linear(x, packed, bias, activation, residual, norm_weight, norm_bias);
  check_linear_out(out, x, packed, bias, residual, norm_weight, norm_bias);
  const DeviceGuard guard(x.get_device_index());
  run_linear_into(x, packed, bias, activation, residual, norm_weight, norm_bias, out);
}

Tensor layer_norm_cuda(const Tensor& x,       // [..., d] float32
                       const Tensor& weight,  // [d] float32
                       const Tensor& bias) {  // [d] float32
  check_layer_norm(x, weight, bias);
  const DeviceGuard guard(x.get_device_index());
  const int64_t width = weight.size(0);
  Tensor y = empty_like_as(x, ScalarType::Float);
  launch_norm(
      {x.const_data_ptr<float>(), width, weight.const_data_ptr<float>(),
       bias.const_data_ptr<float>(), y.mutable_data_ptr<float>(), width, x.numel() / width, width},
      current_cuda_stream(x));
  return y;
}

Tensor conv3x3_cuda(const Tensor& x,       // [h, w, C] float32
                    const Tensor& packed,  // [ceil(N / 32), 9 C, 32] float32
                    const Tensor& bias,    // [N] float32
                    int64_t stride, const std::string& activation) {
  check_conv3x3(x, packed, bias, stride, activation);
  check_aligned(packed);
  const DeviceGuard guard(x.get_device_index());
  const int64_t height = x.size(0), width = x.size(1), out_channels = bias.size(0);
  Tensor y = torch::stable::new_empty(
      x, {(height + stride - 1) / stride, (width + stride - 1) / stride, out_channels},
      ScalarType::Float);
  const Tensor start = panel_bias(bias);
  launch_conv3x3({x.const_data_ptr<float>(), height, width, x.size(2), stride,
                  packed.const_data_ptr<float>(), start.const_data_ptr<float>(),
                  y.mutable_data_ptr<float>(), out_channels, activation_of(activation)},
                 current_cuda_stream(x));
  return y;
}

Tensor depthwise3x3_cuda(const Tensor& x,       // [h, w, C] float32
                         const Tensor& weight,  // [9, C] float32
                         const Tensor& bias) {  // [C] float32
  check_depthwise3x3(x, weight, bias);
  const DeviceGuard guard(x.get_device_index());
  Tensor y = empty_like_as(x, ScalarType::Float);
  launch_depthwise3x3(
      {x.const_data_ptr<float>(), weight.const_data_ptr<float>(), bias.const_data_ptr<float>(),
       y.mutable_data_ptr<float>(), x.size(0), x.size(1), x.size(2), 0, x.size(0)},
      current_cuda_stream(x));
  return y;
}

Tensor window_attention_cuda(const Tensor& qkv,            // [h, w, 3 d] float32
                             const Tensor& relative_bias,  // [d / 32, 225] float32
                             bool shifted) {
  check_window_attention(qkv, relative_bias);
  const int64_t height = qkv.size(0), width = qkv.size(1), heads = relative_bias.size(0);
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() - TileSet::kAlignment;
  GROUPEDMIXER_CHECK(width == 0 || height <= kMost / width, "qkv must have at most ", kMost,
                     " positions on CUDA, got ", shape_of(qkv));
  const DeviceGuard guard(qkv.get_device_index());
  Tensor out = empty_with_last(qkv, heads * kHeadDim);
  if (height * width == 0) return out;
  WindowLayerParams params{
      qkv.const_data_ptr<float>(),  {}, heads, shifted, relative_bias.const_data_ptr<float>(),
      out.mutable_data_ptr<float>()};
  params.tiles.add(static_cast<int32_t>(height), static_cast<int32_t>(width));
  launch_window_attention(params, current_cuda_stream(qkv));
  return out;
}

Tensor append_attention_cuda(const Tensor& qkv,    // [T, 3 d] float32
                             const Tensor& cache,  // [ceil(T / 16), heads, 2, G, 32, 16] float16
                             const Tensor& step_bias,  // [heads, G, G] float32
                             int64_t step) {
  check_append_attention(qkv, cache, step_bias, step);
  const DeviceGuard guard(qkv.get_device_index());
  const int64_t heads = cache.size(1), width = heads * kHeadDim;
  Tensor out = empty_with_last(qkv, width);
  launch_append_attention(
      {qkv.const_data_ptr<float>(), 3 * width, static_cast<uint16_t*>(cache.mutable_data_ptr()),
       step_bias.const_data_ptr<float>(), out.mutable_data_ptr<float>(), width, qkv.size(0), heads,
       step, cache.size(3), nullptr},
      current_cuda_stream(qkv));
  return out;
}

Tensor map(const Tensor& x, void (*launch)(const MapParams&, void*)) {
  check_plain(x, "x");
  const DeviceGuard guard(x.get_device_index());
  Tensor y = empty_like_as(x, ScalarType::Float);
  launch({x.const_data_ptr<float>(), y.mutable_data_ptr<float>(), x.numel()},
         current_cuda_stream(x));
  return y;
}

Tensor compand_cuda(const Tensor& x) { return map(x, launch_compand); }        // [...] float32
Tensor leaky_relu_cuda(const Tensor& x) { return map(x, launch_leaky_relu); }  // [...] float32

Tensor add_half_tanh_cuda(const Tensor& y_hat,  // [...] float32
                          const Tensor& x) {    // [...] float32
  check_add_half_tanh(y_hat, x);
  const DeviceGuard guard(x.get_device_index());
  Tensor sum = torch::stable::clone(y_hat);
  launch_half_tanh({x.const_data_ptr<float>(), sum.mutable_data_ptr<float>(), x.numel()},
                   current_cuda_stream(x));
  return sum;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(groupedmixer, CUDA, m) {
  m.impl("pack_weight", TORCH_BOX(&pack_weight_cuda));
  m.impl("linear", TORCH_BOX(&linear_cuda));
  m.impl("linear_into", TORCH_BOX(&linear_into_cuda));
  m.impl("layer_norm", TORCH_BOX(&layer_norm_cuda));
  m.impl("conv3x3", TORCH_BOX(&conv3x3_cuda));
  m.impl("depthwise3x3", TORCH_BOX(&depthwise3x3_cuda));
  m.impl("window_attention", TORCH_BOX(&window_attention_cuda));
  m.impl("append_attention", TORCH_BOX(&append_attention_cuda));
  m.impl("compand", TORCH_BOX(&compand_cuda));
  m.impl("leaky_relu", TORCH_BOX(&leaky_relu_cuda));
  m.impl("add_half_tanh", TORCH_BOX(&add_half_tanh_cuda));
}

}  // namespace groupedmixer::strict
