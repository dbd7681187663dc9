// SPDX-License-Identifier: MIT
//
// What the adapters of kernels.h share on CPU and CUDA: checks, shapes, and a layer's parameters.

#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/checks.h"
#include "strict/kernels.h"
#include "strict/kv_cache.h"
#include "strict/packed.h"

namespace groupedmixer::strict {

// A contiguous float32 tensor.
inline void check_plain(const Tensor& tensor, const char* name) {
  check_dtype(tensor, name, ScalarType::Float);
  check_contiguous(tensor, name);
}

// Tensors and their names in turn, all on the device of the first one.
template <typename... Others>
void check_one_device(const Tensor& first, const char* first_name, const Tensor& second,
                      const char* second_name, const Others&... others) {
  check_same_device(second, second_name, first, first_name);
  if constexpr (sizeof...(others) > 0) check_one_device(first, first_name, others...);
}

// `symbol` is the name of the size.
inline void check_vector(const Tensor& tensor, const char* name, int64_t size, const char* symbol) {
  check_plain(tensor, name);
  GROUPEDMIXER_CHECK(tensor.dim() == 1 && tensor.size(0) == size, name, " must be [", symbol,
                     "], [", size, "], got ", shape_of(tensor));
}

inline void check_activation(const std::string& activation) {
  GROUPEDMIXER_CHECK(activation == "none" || activation == "gelu" || activation == "leaky_relu",
                     "activation must be none, gelu or leaky_relu, got '", activation, "'");
}

inline void check_pack_weight(const Tensor& weight) {
  check_plain(weight, "weight");
  GROUPEDMIXER_CHECK(weight.dim() == 2 && weight.numel() > 0,
                     "weight must be [N, K] with N, K >= 1, got ", shape_of(weight));
}

// `symbol` is the name of the depth.
inline void check_packed(const Tensor& packed, const Tensor& bias, int64_t depth,
                         const char* symbol) {
  check_plain(packed, "packed");
  check_plain(bias, "bias");
  GROUPEDMIXER_CHECK(bias.dim() == 1 && bias.size(0) > 0, "bias must be [N] with N >= 1, got ",
                     shape_of(bias));
  const int64_t panels = round_up(bias.size(0), kPanel) / kPanel;
  GROUPEDMIXER_CHECK(packed.dim() == 3 && packed.size(0) == panels && packed.size(1) == depth &&
                         packed.size(2) == kPanel,
                     "packed must be [ceil(N / 32), ", symbol, ", 32], [", panels, ", ", depth,
                     ", ", kPanel, "], got ", shape_of(packed));
}

inline void check_layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  check_plain(x, "x");
  GROUPEDMIXER_CHECK(x.dim() >= 1 && x.size(x.dim() - 1) > 0 && x.size(x.dim() - 1) % 32 == 0,
                     "x must be [..., d] with d a multiple of 32, got ", shape_of(x));
  check_vector(weight, "weight", x.size(x.dim() - 1), "d");
  check_vector(bias, "bias", x.size(x.dim() - 1), "d");
  check_one_device(x, "x", weight, "weight", bias, "bias");
}

// Whether `tensor` is what a layer of N outputs makes of x.
inline void check_rows_of(const Tensor& tensor, const char* name, const Tensor& x, int64_t width) {
  bool fits = tensor.dim() == x.dim() && tensor.size(x.dim() - 1) == width;
  for (int64_t d = 0; fits && d + 1 < x.dim(); ++d) fits = tensor.size(d) == x.size(d);
  GROUPEDMIXER_CHECK(fits, name, " must be [..., N], N = ", width,
                     ", with the leading sizes of x, ", shape_of(x), ", got ", shape_of(tensor));
}

inline void check_linear(const Tensor& x, const Tensor& packed, const Tensor& bias,
                         const std::string& activation, const std::optional<Tensor>& residual,
                         const std::optional<Tensor>& norm_weight,
                         const std::optional<Tensor>& norm_bias) {
  check_plain(x, "x");
  GROUPEDMIXER_CHECK(x.dim() >= 1 && x.size(x.dim() - 1) > 0,
                     "x must be [..., K] with K >= 1, got ", shape_of(x));
  const int64_t depth = x.size(x.dim() - 1);
  check_packed(packed, bias, depth, "K");
  check_one_device(x, "x", packed, "packed", bias, "bias");
  check_activation(activation);
  if (residual) {
    check_same_device(*residual, "residual", x, "x");
    check_plain(*residual, "residual");
    check_rows_of(*residual, "residual", x, bias.size(0));
  }
  GROUPEDMIXER_CHECK(norm_weight.has_value() == norm_bias.has_value(),
                     "norm must be a weight and a bias, got one of them");
  if (norm_weight) {
    GROUPEDMIXER_CHECK(depth % 32 == 0,
                       "norm must be None unless K is a multiple of 32, got K = ", depth);
    check_vector(*norm_weight, "norm weight", depth, "K");
    check_vector(*norm_bias, "norm bias", depth, "K");
    check_one_device(x, "x", *norm_weight, "norm weight", *norm_bias, "norm bias");
  }
}

// Whether contiguous float32 tensors share memory.
inline bool overlap(const Tensor& a, const Tensor& b) {
  const auto first = [](const Tensor& t) {
    return reinterpret_cast<uintptr_t>(t.const_data_ptr<float>());
  };
  const auto end = [&](const Tensor& t) {
    return first(t) + static_cast<uintptr_t>(t.numel()) * sizeof(float);
  };
  return first(a) < end(b) && first(b) < end(a);
}

// Of arguments that passed check_linear.
inline void check_linear_out(const Tensor& out, const Tensor& x, const Tensor& packed,
                             const Tensor& bias, const std::optional<Tensor>& residual,
                             const std::optional<Tensor>& norm_weight,
                             const std::optional<Tensor>& norm_bias) {
  check_plain(out, "out");
  check_same_device(out, "out", x, "x");
  check_rows_of(out, "out", x, bias.size(0));
  const auto check_apart = [&](const Tensor& tensor, const char* name) {
    GROUPEDMIXER_CHECK(!overlap(out, tensor), "out must not overlap ", name);
  };
  check_apart(x, "x");
  check_apart(packed, "packed");
  check_apart(bias, "bias");
  if (norm_weight) check_apart(*norm_weight, "norm weight");
  if (norm_bias) check_apart(*norm_bias, "norm bias");
  if (residual) {
    const bool same = residual->const_data_ptr<float>() == out.const_data_ptr<float>();
    GROUPEDMIXER_CHECK(same || !overlap(out, *residual),
                       "out must be residual or not overlap it, got a part of it");
  }
}

inline void check_image(const Tensor& x, const char* name) {
  check_plain(x, name);
  GROUPEDMIXER_CHECK(x.dim() == 3 && x.size(2) > 0, name, " must be [h, w, C] with C >= 1, got ",
                     shape_of(x));
}

inline void check_conv3x3(const Tensor& x, const Tensor& packed, const Tensor& bias, int64_t stride,
                          const std::string& activation) {
  check_image(x, "x");
  check_packed(packed, bias, 9 * x.size(2), "9 C");
  check_one_device(x, "x", packed, "packed", bias, "bias");
  GROUPEDMIXER_CHECK(stride == 1 || stride == 2, "stride must be 1 or 2, got ", stride);
  check_activation(activation);
}

inline void check_depthwise3x3(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  check_image(x, "x");
  check_plain(weight, "weight");
  GROUPEDMIXER_CHECK(weight.dim() == 2 && weight.size(0) == 9 && weight.size(1) == x.size(2),
                     "weight must be [9, C], [9, ", x.size(2), "], got ", shape_of(weight));
  check_vector(bias, "bias", x.size(2), "C");
  check_one_device(x, "x", weight, "weight", bias, "bias");
}

inline void check_window_attention(const Tensor& qkv, const Tensor& relative_bias) {
  constexpr int64_t kOffsets = (2 * kWindow - 1) * (2 * kWindow - 1);
  check_image(qkv, "qkv");
  check_plain(relative_bias, "relative_bias");
  check_same_device(relative_bias, "relative_bias", qkv, "qkv");
  GROUPEDMIXER_CHECK(
      relative_bias.dim() == 2 && relative_bias.size(0) > 0 && relative_bias.size(1) == kOffsets,
      "relative_bias must be [heads, ", kOffsets, "] with heads >= 1, got ",
      shape_of(relative_bias));
  GROUPEDMIXER_CHECK(qkv.size(2) == 3 * kHeadDim * relative_bias.size(0),
                     "qkv must be [h, w, 3 * 32 * heads] with heads = ", relative_bias.size(0),
                     ", got ", shape_of(qkv));
}

inline void check_append_attention(const Tensor& qkv, const Tensor& cache, const Tensor& step_bias,
                                   int64_t step) {
  check_plain(qkv, "qkv");
  check_dtype(cache, "cache", ScalarType::Half);
  check_contiguous(cache, "cache");
  check_one_device(qkv, "qkv", cache, "cache", step_bias, "step_bias");
  GROUPEDMIXER_CHECK(cache.dim() == 6 && cache.size(1) > 0 && cache.size(2) == 2 &&
                         cache.size(3) > 0 && cache.size(4) == kHeadDim &&
                         cache.size(5) == kTokenBlock,
                     "cache must be [ceil(T / 16), heads, 2, G, 32, 16] with heads, G >= 1, got ",
                     shape_of(cache));
  const int64_t heads = cache.size(1), capacity = cache.size(3);
  GROUPEDMIXER_CHECK(qkv.dim() == 2 && qkv.size(1) == 3 * kHeadDim * heads &&
                         round_up(qkv.size(0), kTokenBlock) == kTokenBlock * cache.size(0),
                     "qkv must be [T, 3 * 32 * heads] with ceil(T / 16) = ", cache.size(0),
                     " and heads = ", heads, ", got ", shape_of(qkv));
  check_plain(step_bias, "step_bias");
  GROUPEDMIXER_CHECK(step_bias.dim() == 3 && step_bias.size(0) == heads &&
                         step_bias.size(1) == capacity && step_bias.size(2) == capacity,
                     "step_bias must be [heads, G, G], [", heads, ", ", capacity, ", ", capacity,
                     "], got ", shape_of(step_bias));
  GROUPEDMIXER_CHECK(step >= 0 && step < capacity, "step must be 0 .. ", capacity - 1,
                     " (G - 1), got ", step);
}

inline void check_add_half_tanh(const Tensor& y_hat, const Tensor& x) {
  check_plain(y_hat, "y_hat");
  check_plain(x, "x");
  check_same_device(x, "x", y_hat, "y_hat");
  check_same_shape(x, "x", y_hat, "y_hat");
}

// Of the shape of `like` but for the last dimension.
inline Tensor empty_with_last(const Tensor& like, int64_t last) {
  std::vector<int64_t> sizes(like.sizes().begin(), like.sizes().end());
  sizes.back() = last;
  return torch::stable::new_empty(like, sizes, ScalarType::Float);
}

inline Activation activation_of(const std::string& name) {
  if (name == "gelu") return Activation::kGelu;
  if (name == "leaky_relu") return Activation::kLeakyRelu;
  return Activation::kNone;
}

// Of arguments that passed check_linear.
inline LinearParams linear_params(const Tensor& x, const Tensor& packed,
                                  const float* bias,  // [N rounded up to 32]
                                  int64_t width,      // N
                                  const std::string& activation,
                                  const std::optional<Tensor>& residual,
                                  const std::optional<Tensor>& norm_weight,
                                  const std::optional<Tensor>& norm_bias, const Tensor& out) {
  const int64_t depth = packed.size(1);
  LinearParams params{x.const_data_ptr<float>(),
                      depth,
                      packed.const_data_ptr<float>(),
                      bias,
                      out.mutable_data_ptr<float>(),
                      width,
                      x.numel() / depth,
                      depth,
                      width,
                      activation_of(activation)};
  if (residual) params.residual = residual->const_data_ptr<float>();
  params.residual_stride = width;
  if (norm_weight) {
    params.norm_weight = norm_weight->const_data_ptr<float>();
    params.norm_bias = norm_bias->const_data_ptr<float>();
  }
  return params;
}

}  // namespace groupedmixer::strict
