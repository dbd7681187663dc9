// SPDX-License-Identifier: MIT
//
// The strict kernels for Python, for the CPU. They only split the work among PyTorch's threads:
// a pool that is there already, as starting threads would cost more than a small layer.
// strict_cuda_op.cpp has them for CUDA.

#include <algorithm>
#include <exception>
#include <mutex>
#include <optional>
#include <string>

#include "common/aligned.h"
#include "common/arena.h"
#include "common/float_mode.h"
#include "strict/kernels.h"
#include "strict/kv_cache.h"
#include "strict/packed.h"
#include "strict/strict_checks.h"
#include "transform/layers.h"

namespace groupedmixer::strict {
namespace {

// Windows of a convolution that are gathered at once.
constexpr int64_t kWindows = 48;

// Operations that are worth another thread: some microseconds of multiply-adds, which count 2.
constexpr int64_t kWorthAThread = 1 << 20;

// What other work costs, in the time of as many operations; measured with AVX-512.
constexpr int64_t kElementOperations = 64;  // an element of a layer norm or depth-wise convolution
constexpr int64_t kScoreOperations = 512;   // an attention's score: a product, exp and a value

// Scratch of the threads of a call; none is allocated once a call has had as much.
ArenaPool& scratch() {
  static ArenaPool pool;
  return pool;
}

// Calls body(begin, end) for shares of 0 .. count, one a thread; on the calling thread alone if
// there are `grain` or less.
template <typename Body>
void run_shares(int64_t count, int64_t grain, const Body& body) {
  std::mutex mutex;
  std::exception_ptr failure;  // what is thrown must not pass the frames of another library
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    const ScopedFloatMode mode;
    try {
      body(begin, end);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      failure = std::current_exception();
    }
  });
  if (failure) std::rethrow_exception(failure);
}

// Shares of things that take `operations` each.
template <typename Body>
void share_out(int64_t count, int64_t operations, const Body& body) {
  run_shares(count, transform::ceil_div(kWorthAThread, std::max<int64_t>(operations, 1)), body);
}

// A bias that can be read to the end of its last panel.
class PanelBias {
 public:
  explicit PanelBias(const Tensor& bias) : data_(bias.const_data_ptr<float>()) {  // [N]
    const int64_t width = bias.size(0);
    if (width % kPanel == 0) return;
    padded_.resize(static_cast<size_t>(round_up(width, kPanel)));
    std::copy_n(data_, width, padded_.begin());
    data_ = padded_.data();
  }
  PanelBias(const PanelBias&) = delete;
  PanelBias& operator=(const PanelBias&) = delete;
  const float* data() const { return data_; }

 private:
  AlignedVector padded_;
  const float* data_;
};

Tensor pack_weight_cpu(const Tensor& weight) {  // [N, K] float32
  check_pack_weight(weight);
  const int64_t width = weight.size(0), depth = weight.size(1);
  Tensor packed = torch::stable::new_empty(
      weight, {round_up(width, kPanel) / kPanel, depth, kPanel}, ScalarType::Float);
  pack_weight(weight.const_data_ptr<float>(), width, depth, packed.mutable_data_ptr<float>());
  return packed;
}

// Fewer rows would not fill the register tile.
constexpr int64_t kLeastRows = 12;

// A layer in parts, each a range of rows and a range of panels.
struct Parts {
  int64_t rows, panels;  // how many ranges there are of each
};

// A part a thread, so cut that the largest is smallest. Rows go first: every range of panels takes
// the layer norm of its own.
Parts cut(const LinearParams& params) {
  const int64_t operations = 2 * params.rows * params.depth * params.width;
  const int64_t threads =
      std::clamp<int64_t>(operations / kWorthAThread, 1, torch::stable::get_num_threads());
  const int64_t panels = transform::ceil_div(params.width, kPanel);
  const auto largest = [&](Parts parts) {
    return transform::ceil_div(params.rows, parts.rows) * transform::ceil_div(panels, parts.panels);
  };
  Parts best{1, std::min(threads, panels)};
  for (int64_t rows = 2; rows <= std::min(threads, params.rows / kLeastRows); ++rows) {
    const Parts parts{rows, std::min(threads / rows, panels)};
    if (largest(parts) <= largest(best)) best = parts;
  }
  return best;
}

// All of a layer; params.normed is not used.
void run_linear(const LinearParams& params) {
  const Kernels& run = kernels();
  const Parts parts = cut(params);
  const int64_t panels = transform::ceil_div(params.width, kPanel);
  run_shares(parts.rows * parts.panels, 1, [&](int64_t begin, int64_t end) {
    const ArenaPool::Lease arena(scratch());
    float* normed = nullptr;
    if (params.norm_weight != nullptr) {
      normed = arena->take<float>(std::min(kRowBlock, params.rows) * params.depth);
    }
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / parts.panels, panel = i % parts.panels;
      const int64_t left = panels * panel / parts.panels * kPanel;
      const int64_t right = std::min(panels * (panel + 1) / parts.panels * kPanel, params.width);
      const int64_t top = params.rows * row / parts.rows;
      const int64_t bottom = params.rows * (row + 1) / parts.rows;
      transform::for_parts(top, bottom, kRowBlock, [&](int64_t first, int64_t last) {
        LinearParams block = params;
        block.x += first * params.x_stride;
        block.weight += left * params.depth;
        block.bias += left;
        block.out += first * params.out_stride + left;
        block.rows = last - first;
        block.width = right - left;
        if (params.residual != nullptr) block.residual += first * params.residual_stride + left;
        block.normed = normed;
        run.linear(block);
      });
    }
  });
}

void run_linear_into(const Tensor& x, const Tensor& packed, const Tensor& bias,
                     const std::string& activation, const std::optional<Tensor>& residual,
                     const std::optional<Tensor>& norm_weight,
                     const std::optional<Tensor>& norm_bias, const Tensor& out) {
  const PanelBias start(bias);
  run_linear(linear_params(x, packed, start.data(), bias.size(0), activation, residual, norm_weight,
                           norm_bias, out));
}

Tensor linear_cpu(const Tensor& x,       // [..., K] float32
                  const Tensor& packed,  // [ceil(N / 32), K, 32] float32
                  const Tensor& bias,    // [N] float32
                  const std::string& activation,
                  const std::optional<Tensor>& residual,     // [..., N] float32
                  const std::optional<Tensor>& norm_weight,  // [K] float32
                  const std::optional<Tensor>& norm_bias) {  // [K] float32
  check_linear(x, packed, bias, activation, residual, norm_weight, norm_bias);
  Tensor y = empty_with_last(x, bias.size(0));
  run_linear_into(x, packed, bias, activation, residual, norm_weight, norm_bias, y);
  return y;
}

void linear_into_cpu(const Tensor& x,       // [..., K] float32
                     const Tensor& packed,  // [ceil(N / 32), K, 32] float32
                     const Tensor& bias,    // [N] float32
                     const std::string& activation,
                     const std::optional<Tensor>& residual,     // [..., N] float32
                     const std::optional<Tensor>& norm_weight,  // [K] float32
                     const std::optional<Tensor>& norm_bias,    // [K] float32
                     const Tensor& out) {                       // [..., N] float32
  check_linear(x, packed, bias, activation, residual, norm_weight, norm_bias);
  check_linear_out(out, x, packed, bias, residual, norm_weight, norm_bias);
  run_linear_into(x, packed, bias, activation, residual, norm_weight, norm_bias, out);
}

Tensor layer_norm_cpu(const Tensor& x,       // [..., d] float32
                      const Tensor& weight,  // [d] float32
                      const Tensor& bias) {  // [d] float32
  check_layer_norm(x, weight, bias);
  const Kernels& run = kernels();
  const int64_t width = weight.size(0);
  Tensor y = empty_like_as(x, ScalarType::Float);
  const float* from = x.const_data_ptr<float>();
  float* to = y.mutable_data_ptr<float>();
  share_out(x.numel() / width, kElementOperations * width, [&](int64_t begin, int64_t end) {
    run.norm({from + begin * width, width, weight.const_data_ptr<float>(),
              bias.const_data_ptr<float>(), to + begin * width, width, end - begin, width});
  });
  return y;
}

Tensor conv3x3_cpu(const Tensor& x,       // [h, w, C] float32
                   const Tensor& packed,  // [ceil(N / 32), 9 C, 32] float32
                   const Tensor& bias,    // [N] float32
                   int64_t stride, const std::string& activation) {
  check_conv3x3(x, packed, bias, stride, activation);
  const Kernels& run = kernels();
  const int64_t height = x.size(0), width = x.size(1), channels = x.size(2);
  const int64_t depth = 9 * channels, out_channels = bias.size(0);
  const transform::Grid grid{0, 0, transform::ceil_div(height, stride),
                             transform::ceil_div(width, stride)};
  Tensor y =
      torch::stable::new_empty(x, {grid.rows, grid.columns, out_channels}, ScalarType::Float);
  const PanelBias start(bias);
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
  share_out(grid.count(), 2 * depth * out_channels, [&](int64_t begin, int64_t end) {
    const ArenaPool::Lease arena(scratch());
    float* windows = arena->take<float>(std::min(kWindows, end - begin) * depth);
    transform::for_parts(begin, end, kWindows, [&](int64_t first, int64_t last) {
      transform::gather_windows(image, stride, grid, first, last, windows);
      LinearParams part = params;
      part.x = windows;
      part.rows = last - first;
      part.out += first * out_channels;
      run.linear(part);
    });
  });
  return y;
}

Tensor depthwise3x3_cpu(const Tensor& x,       // [h, w, C] float32
                        const Tensor& weight,  // [9, C] float32
                        const Tensor& bias) {  // [C] float32
  check_depthwise3x3(x, weight, bias);
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
  const int64_t row = x.size(1) * x.size(2);
  share_out(row == 0 ? 0 : x.size(0), kElementOperations * row, [&](int64_t begin, int64_t end) {
    DepthwiseParams share = params;
    share.row_begin = begin;
    share.row_end = end;
    run.depthwise3x3(share);
  });
  return y;
}

Tensor window_attention_cpu(const Tensor& qkv,            // [h, w, 3 d] float32
                            const Tensor& relative_bias,  // [d / 32, 225] float32
                            bool shifted) {
  check_window_attention(qkv, relative_bias);
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
  // Cells at the border are smaller: on average, not all of them have kWindowTokens queries.
  const int64_t scores = height * width * heads * kWindowTokens / std::max<int64_t>(count, 1);
  share_out(count, scores * kScoreOperations, [&](int64_t begin, int64_t end) {
    const ArenaPool::Lease arena(scratch());
    WindowAttentionParams cell = params;
    cell.scratch = arena->take<float>(kWindowScratch);
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
                            int64_t step) {
  check_append_attention(qkv, cache, step_bias, step);
  const Kernels& run = kernels();
  const int64_t tokens = qkv.size(0), heads = cache.size(1), capacity = cache.size(3);
  const int64_t width = heads * kHeadDim;
  const KvCache layout{heads, capacity};
  Tensor out = empty_with_last(qkv, width);
  const float* from = qkv.const_data_ptr<float>();
  auto* halves = static_cast<uint16_t*>(cache.mutable_data_ptr());
  float* to = out.mutable_data_ptr<float>();
  const int64_t operations =
      kTokenBlock * (3 * width * kElementOperations + heads * (step + 1) * kScoreOperations);
  share_out(cache.size(0), operations, [&](int64_t begin, int64_t end) {
    const ArenaPool::Lease arena(scratch());
    float* scores = arena->take<float>(append_scratch(capacity));
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * kTokenBlock;
      run.append_attention({from + first * 3 * width, 3 * width,
                            halves + block * layout.block_size(), step_bias.const_data_ptr<float>(),
                            to + first * width, width, std::min(kTokenBlock, tokens - first), heads,
                            step, capacity, scores});
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
  m.impl("linear_into", TORCH_BOX(&linear_into_cpu));
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
