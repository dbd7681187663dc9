// SPDX-License-Identifier: MIT

#include <algorithm>

#include "strict/convolution_cuda.h"
#include "strict/window_source.h"
#include "transform/device_hyper.h"
#include "transform/device_layers.h"

namespace groupedmixer::transform {
namespace {

using strict::Activation;

constexpr int64_t kTaps = 9;
constexpr int kThreads = 128;

// ---- h_a ----------------------------------------------------------------------------------------

// compand, then the last row and column again up to the size of `out`. A pixel of `out` a block.
__global__ void __launch_bounds__(kThreads)
    compand_pad_kernel(const float* x,  // [height, width, channels]
                       int64_t height, int64_t width, int64_t channels, uint32_t columns,
                       float* out) {  // [.., columns, channels]
  const int64_t row = blockIdx.x / columns, column = blockIdx.x % columns;
  const int64_t y = row < height ? row : height - 1;
  const int64_t from = (y * width + (column < width ? column : width - 1)) * channels;
  const int64_t to = blockIdx.x * channels;
  for (int64_t c = threadIdx.x; c < channels; c += kThreads) {
    out[to + c] = strict::compand(x[from + c]);
  }
}

void launch_compand_pad(const float* x, int64_t height, int64_t width, int64_t channels,
                        int64_t rows, int64_t columns, float* out, void* stream) {
  const dim3 grid(static_cast<unsigned>(rows * columns));
  launch("compand_pad", compand_pad_kernel, grid, kThreads, 0, stream, x, height, width, channels,
         static_cast<uint32_t>(columns), out);
}

int64_t channels_of(const strict::DeviceLinear& convolution) { return convolution.depth / kTaps; }

void convolve(const strict::DeviceLinear& layer, Activation activation, const float* x,
              int64_t height, int64_t width, int64_t stride, float* out, void* stream) {
  strict::launch_conv3x3({x, height, width, channels_of(layer), stride, layer.weight.data(),
                          layer.bias.data(), out, layer.width, activation},
                         stream);
}

}  // namespace

DeviceHyperAnalysis::DeviceHyperAnalysis(const HyperAnalysis& transform)
    : full_(transform.full()), half_(transform.half()), quarter_(transform.quarter()) {}

DeviceHyperAnalysis::Scratch DeviceHyperAnalysis::take(DeviceLayout& layout, int64_t height,
                                                       int64_t width) const {
  const int64_t pixels =
      ceil_div(height, kHyperStride) * ceil_div(width, kHyperStride) * kHyperStride * kHyperStride;
  const int64_t padded = pixels * channels_of(full_), half = pixels / 4 * half_.width;
  return {layout.take<float>(std::max(padded, half)), layout.take<float>(pixels * full_.width)};
}

void DeviceHyperAnalysis::run(const float* scaled, int64_t height, int64_t width, float* z,
                              const Scratch& scratch, void* stream) const {
  const int64_t rows = ceil_div(height, kHyperStride) * kHyperStride;
  const int64_t columns = ceil_div(width, kHyperStride) * kHyperStride;
  launch_compand_pad(scaled, height, width, channels_of(full_), rows, columns, scratch.even,
                     stream);
  convolve(full_, Activation::kLeakyRelu, scratch.even, rows, columns, 1, scratch.odd, stream);
  convolve(half_, Activation::kLeakyRelu, scratch.odd, rows, columns, 2, scratch.even, stream);
  convolve(quarter_, Activation::kNone, scratch.even, rows / 2, columns / 2, 2, z, stream);
}

// ---- h_s ----------------------------------------------------------------------------------------

namespace {

// A convolution, leaky and a shuffle by 2. Only pixels whose outputs lie in `out` are computed.
void convolve_and_shuffle(const strict::DeviceLinear& layer, const float* x, int64_t height,
                          int64_t width,
                          float* out,  // [out_height, out_width, layer.width / 4]
                          int64_t out_height, int64_t out_width, void* stream) {
  const int64_t rows = ceil_div(out_height, 2), columns = ceil_div(out_width, 2);
  const strict::WindowSource source{x, height, width, channels_of(layer), 1, columns};
  const ShuffleSink sink{
      out, out_height, out_width, layer.width / 4, columns, Activation::kLeakyRelu};
  strict::launch_linear_kernel("convolve_and_shuffle", shape_of(layer, rows * columns), source,
                               sink, stream);
}

}  // namespace

DeviceHyperSynthesis::DeviceHyperSynthesis(const HyperSynthesis& transform)
    : quarter_(transform.quarter()), half_(transform.half()), last_(transform.last()) {}

DeviceHyperSynthesis::Scratch DeviceHyperSynthesis::take(DeviceLayout& layout, int64_t height,
                                                         int64_t width) const {
  const int64_t hyper = ceil_div(height, kHyperStride) * ceil_div(width, kHyperStride);
  return {layout.take<float>(4 * hyper * channels_of(half_)),
          layout.take<float>(height * width * last_.depth)};
}

void DeviceHyperSynthesis::run(const float* z_hat, int64_t height, int64_t width, float* psi,
                               const Scratch& scratch, void* stream) const {
  const int64_t rows = ceil_div(height, kHyperStride), columns = ceil_div(width, kHyperStride);
  convolve_and_shuffle(quarter_, z_hat, rows, columns, scratch.half, 2 * rows, 2 * columns, stream);
  convolve_and_shuffle(half_, scratch.half, 2 * rows, 2 * columns, scratch.full, height, width,
                       stream);
  launch_layer(last_, {scratch.full, last_.depth, psi, last_.width, height * width}, stream);
}

}  // namespace groupedmixer::transform
