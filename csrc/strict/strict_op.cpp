// SPDX-License-Identifier: MIT
//
// The strict kernels for Python, for the CPU. They only split the work among threads.

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "common/aligned.h"
#include "common/float_mode.h"
#include "common/team.h"
#include "strict/kernels.h"
#include "strict/kv_cache.h"
#include "strict/packed.h"
#include "strict/strict_checks.h"
#include "transform/layers.h"

namespace groupedmixer::strict {
namespace {

// Windows of a convolution that are gathered at once.
constexpr int64_t kWindows = 48;

// Calls body(begin, end) for shares of 0 .. count on up to `threads` threads.
template <typename Body>
void share_out(int64_t threads, int64_t count, const Body& body) {
  if (count == 0) return;
  run_team(static_cast<int>(std::min(threads, count)), [&](const Member& member) {
    const Member::Range share = member.share(count);
    body(share.begin, share.end);
  });
}

// Of the shape of `like` but for the last dimension.
Tensor empty_with_last(const Tensor& like, int64_t last) {
  std::vector<int64_t> sizes(like.sizes().begin(), like.sizes().end());
  sizes.back() = last;
  return torch::stable::new_empty(like, sizes, ScalarType::Float);
}

AlignedVector padded_to_panels(const Tensor& bias) {  // [N]
  AlignedVector padded(static_cast<size_t>(round_up(bias.size(0), kPanel)));
  std::copy_n(bias.const_data_ptr<float>(), bias.size(0), padded.begin());
  return padded;
}

Activation activation_of(const std::string& name) {
  if (name == "gelu") return Activation::kGelu;
  if (name == "leaky_relu") return Activation::kLeakyRelu;
  return Activation::kNone;
}

Tensor pack_weight_cpu(const Tensor& weight) {  // [N, K] float32
  check_pack_weight(weight);
  const int64_t width = weight.size(0), depth = weight.size(1);
  Tensor packed = torch::stable::new_empty(
      weight, {round_up(width, kPanel) / kPanel, depth, kPanel}, ScalarType::Float);
  pack_weight(weight.const_data_ptr<float>(), width, depth, packed.mutable_data_ptr<float>());
  return packed;
}

Tensor linear_cpu(const Tensor& x,       // [..., K] float32
                  const Tensor& packed,  // [ceil(N / 32), K, 32] float32
                  const Tensor& bias,    // [N] float32
                  const std::string& activation,
                  const std::optional<Tensor>& residual,     // [..., N] float32
                  const std::optional<Tensor>& norm_weight,  // [K] float32
                  const std::optional<Tensor>& norm_bias,    // [K] float32
                  int64_t threads) {
  check_linear(x, packed, bias, activation, residual, norm_weight, norm_bias, threads);
  const Kernels& run = kernels();
  const int64_t depth = packed.size(1), width = bias.size(0), rows = x.numel() / depth;
  Tensor y = empty_with_last(x, width);
  const AlignedVector start = padded_to_panels(bias);
  LinearParams params{x.const_data_ptr<float>(),
                      depth,
                      packed.const_data_ptr<float>(),
                      start.data(),
                      y.mutable_data_ptr<float>(),
                      width,
                      rows,
                      depth,
                      width,
                      activation_of(activation)};
  if (residual) params.residual = residual->const_data_ptr<float>();
  params.residual_stride = width;
  std::optional<Tensor> normed;
  if (norm_weight) {
    normed = empty_like_as(x, ScalarType::Float);
    params.norm_weight = norm_weight->const_data_ptr<float>();
    params.norm_bias = norm_bias->const_data_ptr<float>();
    params.normed = normed->mutable_data_ptr<float>();
  }
  share_out(threads, rows, [&](int64_t begin, int64_t end) {
    LinearParams share = params;
    share.rows = end - begin;
    share.x += begin * depth;
    share.out += begin * width;
    if (share.residual != nullptr) share.residual += begin * width;
    if (share.normed != nullptr) share.normed += begin * depth;
    run.linear(share);
  });
  return y;
}

Tensor layer_norm_cpu(const Tensor& x,       // [..., d] float32
                      const Tensor& weight,  // [d] float32
                      const Tensor& bias,    // [d] float32
                      int64_t threads) {
  check_layer_norm(x, weight, bias, threads);
  const Kernels& run = kernels();
  const int64_t width = weight.size(0);
  Tensor y = empty_like_as(x, ScalarType::Float);
  const float* from = x.const_data_ptr<float>();
  float* to = y.mutable_data_ptr<float>();
  share_out(threads, x.numel() / width, [&](int64_t begin, int64_t end) {
    run.norm({from + begin * width, width, weight.const_data_ptr<float>(),
              bias.const_data_ptr<float>(), to + begin * width, width, end - begin, width});
  });
  return y;
}

Tensor conv3x3_cpu(const Tensor& x,       // [h, w, C] float32
                   const Tensor& packed,  // [ceil(N / 32), 9 C, 32] float32
                   const Tensor& bias,    // [N] float32
                   int64_t stride, const std::string& activation, int64_t threads) {
  check_conv3x3(x, packed, bias, stride, activation, threads);
  const Kernels& run = kernels();
  const int64_t height = x.size(0), width = x.size(1), channels = x.size(2);
  const int64_t depth = 9 * channels, out_channels = bias.size(0);
  const transform::Grid grid{0, 0, transform::ceil_div(height, stride),
                             transform::ceil_div(width, stride)};
  Tensor y =
      torch::stable::new_empty(x, {grid.rows, grid.columns, out_channels}, ScalarType::Float);
  const AlignedVector start = padded_to_panels(bias);
  const transform::ImagePart image{x.const_data_ptr<float>(), 0, 0, width, channels, height, width};
  LinearParams params{nullptr,
                      depth,
                      packed.const_data_ptr<float>(),
                      start.data(),
                      y.mutable_data_ptr<float>(),
                      out_channels,
                      0,
                      depth,
                      out_channels,
                      activation_of(activation)};
  share_out(threads, grid.count(), [&](int64_t begin, int64_t end) {
    AlignedVector windows(static_cast<size_t>(std::min(kWindows, end - begin) * depth));
    transform::for_parts(begin, end, kWindows, [&](int64_t first, int64_t last) {
      transform::gather_windows(image, stride, grid, first, last, windows.data());
      LinearParams part = params;
      part.x = windows.data();
      part.rows = last - first;
      part.out += first * out_channels;
      run.linear(part);
    });
  });
  return y;
}

Tensor depthwise3x3_cpu(const Tensor& x,       // [h, w, C] float32
                        const Tensor& weight,  // [9, C] float32
                        const Tensor& bias,    // [C] float32
                        int64_t threads) {
  check_depthwise3x3(x, weight, bias, threads);
  const Kernels& run = kernels();
  Tensor y = empty_like_as(x, ScalarType::Float);
  DepthwiseParams params{x.const_data_ptr<float>(),
                         weight.const_data_ptr<float>(),
                         bias.const_data_ptr<float>(),
                         y.mutable_data_ptr<float>(),
                         x.size(0),
                         x.size(1),
                         x.size(2),
                         0,
                         0};
  share_out(threads, x.size(1) == 0 ? 0 : x.size(0), [&](int64_t begin, int64_t end) {
    DepthwiseParams share = params;
    share.row_begin = begin;
    share.row_end = end;
    run.depthwise3x3(share);
  });
  return y;
}

Tensor window_attention_cpu(const Tensor& qkv,            // [h, w, 3 d] float32
                            const Tensor& relative_bias,  // [d / 32, 225] float32
                            bool shifted, int64_t threads) {
  check_window_attention(qkv, relative_bias, threads);
  const Kernels& run = kernels();
  const int64_t height = qkv.size(0), width = qkv.size(1), heads = relative_bias.size(0);
  Tensor out = empty_with_last(qkv, heads * kHeadDim);
  // The first cell starts this far outside of the grid.
  const int64_t outside = shifted ? kWindow / 2 : 0;
  const auto cells = [&](int64_t side) { return (side + outside + kWindow - 1) / kWindow; };
  const int64_t across = cells(width);
  const int64_t count = height * width == 0 ? 0 : cells(height) * across * heads;
  WindowAttentionParams params{};
  params.qkv = qkv.const_data_ptr<float>();
  params.grid_width = width;
  params.heads = heads;
  params.relative_bias = relative_bias.const_data_ptr<float>();
  params.out = out.mutable_data_ptr<float>();
  share_out(threads, count, [&](int64_t begin, int64_t end) {
    AlignedVector scratch(kWindowScratch);
    WindowAttentionParams cell = params;
    cell.scratch = scratch.data();
    for (int64_t i = begin; i < end; ++i) {
      const int64_t top = i / heads / across * kWindow - outside;
      const int64_t left = i / heads % across * kWindow - outside;
      cell.head = i % heads;
      cell.top = std::max<int64_t>(top, 0);
      cell.left = std::max<int64_t>(left, 0);
      cell.rows = std::min(top + kWindow, height) - cell.top;
      cell.columns = std::min(left + kWindow, width) - cell.left;
      cell.query_begin = 0;
      cell.query_end = cell.rows * cell.columns;
      run.window_attention(cell);
    }
  });
  return out;
}

Tensor append_attention_cpu(const Tensor& qkv,        // [T, 3 d] float32
                            const Tensor& cache,      // [ceil(T / 16), heads, 2, G, 32, 16] float16
                            const Tensor& step_bias,  // [heads, G, G] float32
                            int64_t step, int64_t threads) {
  check_append_attention(qkv, cache, step_bias, step, threads);
  const Kernels& run = kernels();
  const int64_t tokens = qkv.size(0), heads = cache.size(1), capacity = cache.size(3);
  const int64_t width = heads * kHeadDim;
  const KvCache layout{heads, capacity};
  Tensor out = empty_with_last(qkv, width);
  const float* from = qkv.const_data_ptr<float>();
  auto* halves = static_cast<uint16_t*>(cache.mutable_data_ptr());
  float* to = out.mutable_data_ptr<float>();
  share_out(threads, cache.size(0), [&](int64_t begin, int64_t end) {
    AlignedVector scratch(static_cast<size_t>(append_scratch(capacity)));
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * kTokenBlock;
      run.append_attention({from + first * 3 * width, 3 * width,
                            halves + block * layout.block_size(), step_bias.const_data_ptr<float>(),
                            to + first * width, width, std::min(kTokenBlock, tokens - first), heads,
                            step, capacity, scratch.data()});
    }
  });
  return out;
}

Tensor map(const Tensor& x, void (*kernel)(const MapParams&)) {
  check_plain(x, "x");
  Tensor y = empty_like_as(x, ScalarType::Float);
  const ScopedFloatMode mode;
  kernel({x.const_data_ptr<float>(), y.mutable_data_ptr<float>(), x.numel()});
  return y;
}

Tensor compand_cpu(const Tensor& x) { return map(x, kernels().compand); }        // [...] float32
Tensor leaky_relu_cpu(const Tensor& x) { return map(x, kernels().leaky_relu); }  // [...] float32

Tensor add_half_tanh_cpu(const Tensor& y_hat,  // [...] float32
                         const Tensor& x) {    // [...] float32
  check_add_half_tanh(y_hat, x);
  const Kernels& run = kernels();
  Tensor sum = torch::stable::clone(y_hat);
  const ScopedFloatMode mode;
  run.half_tanh({x.const_data_ptr<float>(), sum.mutable_data_ptr<float>(), x.numel()});
  return sum;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(groupedmixer, CPU, m) {
  m.impl("pack_weight", TORCH_BOX(&pack_weight_cpu));
  m.impl("linear", TORCH_BOX(&linear_cpu));
  m.impl("layer_norm", TORCH_BOX(&layer_norm_cpu));
  m.impl("conv3x3", TORCH_BOX(&conv3x3_cpu));
  m.impl("depthwise3x3", TORCH_BOX(&depthwise3x3_cpu));
  m.impl("window_attention", TORCH_BOX(&window_attention_cpu));
  m.impl("append_attention", TORCH_BOX(&append_attention_cpu));
  m.impl("compand", TORCH_BOX(&compand_cpu));
  m.impl("leaky_relu", TORCH_BOX(&leaky_relu_cpu));
  m.impl("add_half_tanh", TORCH_BOX(&add_half_tanh_cpu));
}

}  // namespace groupedmixer::strict
