// SPDX-License-Identifier: MIT

#include <algorithm>

#include "transform/device_layers.h"
#include "transform/device_patch.h"

namespace groupedmixer::transform {
namespace {

using strict::Activation;

constexpr int64_t kHalf = kLatentStride / 2;            // pixels at 1/8
constexpr int64_t kSamples = kHalf * kHalf * kColours;  // of a pixel at 1/8

// ---- g_a ----------------------------------------------------------------------------------------

// Patches of a picture as [3, side, side] samples; its last row and column go on for ever.
struct PatchSource {
  struct Row {
    int32_t top, left;
  };
  struct Column {
    int32_t row, column, colour;
  };

  const uint8_t* rgb;  // [height, width, 3]
  int64_t height, width;
  int32_t log2_side;  // of a patch: 4 at 1/16, 3 at 1/8
  int64_t columns;    // of the grid of patches

  __device__ void open(int64_t row, int lane, Row& out) const {
    if (lane != 0) return;
    const uint32_t index = static_cast<uint32_t>(row), across = static_cast<uint32_t>(columns);
    out = {static_cast<int32_t>(index / across) << log2_side, static_cast<int32_t>(index % across)
                                                                  << log2_side};
  }

  __device__ Column column(int64_t k) const {
    const int32_t index = static_cast<int32_t>(k), mask = (1 << log2_side) - 1;
    return {index >> log2_side & mask, index & mask, index >> 2 * log2_side};
  }

  __device__ float at(const Row& row, const Column& column) const {
    const int64_t y = row.top + column.row, x = row.left + column.column;
    const int64_t line = y < height ? y : height - 1, pixel = x < width ? x : width - 1;
    const uint8_t sample = rgb[(line * width + pixel) * kColours + column.colour];
    return strict::fused(static_cast<float>(sample), 0x1.010102p-8f, -0.5f);
  }
};

// The four pixels that a pixel at half the scale takes the place of, as [channels, 2, 2].
struct UnshuffleSource {
  struct Row {
    int64_t offset;  // of the upper left pixel
  };
  struct Column {
    int64_t offset;
  };

  const float* x;  // [.., 2 columns, channels]
  int64_t columns, channels;

  __device__ void open(int64_t row, int lane, Row& out) const {
    if (lane != 0) return;
    const uint32_t index = static_cast<uint32_t>(row), across = static_cast<uint32_t>(columns);
    out.offset = (index / across * 4 * columns + index % across * 2) * channels;
  }

  __device__ Column column(int64_t k) const {
    const int64_t channel = k / 4, down = k / 2 % 2, right = k % 2;
    return {(down * 2 * columns + right) * channels + channel};
  }

  __device__ float at(const Row& row, const Column& column) const {
    return x[row.offset + column.offset];
  }
};

}  // namespace

DevicePatchAnalysis::DevicePatchAnalysis(const PatchAnalysis& transform)
    : linear_(transform.linear()),
      first_(transform.first()),
      join_(transform.join()),
      last_(transform.last()),
      early_(transform.early()),
      late_(transform.late()) {}

DevicePatchAnalysis::Scratch DevicePatchAnalysis::take(DeviceLayout& layout, int64_t latent_height,
                                                       int64_t latent_width) const {
  const int64_t latents = latent_height * latent_width;
  return {
      layout.take<float>(4 * latents * first_.width), layout.take<float>(latents * join_.width),
      layout.take<float>(std::max(early_.scratch_size(4 * latents), late_.scratch_size(latents)))};
}

void DevicePatchAnalysis::run(const uint8_t* rgb, int64_t height, int64_t width,
                              int64_t latent_height, int64_t latent_width, float* y,
                              const Scratch& scratch, void* stream) const {
  const int64_t latents = latent_height * latent_width;
  const PatchSource whole{rgb, height, width, 4, latent_width};
  launch_layer("patches", linear_, latents, whole, y, stream);
  const PatchSource quarters{rgb, height, width, 3, 2 * latent_width};
  launch_layer("patches", first_, 4 * latents, quarters, scratch.wide, stream);
  early_.run(scratch.wide, 2 * latent_height, 2 * latent_width, scratch.blocks, stream);

  const UnshuffleSource joined{scratch.wide, latent_width, first_.width};
  launch_layer("unshuffle", join_, latents, joined, scratch.narrow, stream);
  late_.run(scratch.narrow, latent_height, latent_width, scratch.blocks, stream);
  launch_layer(last_, {scratch.narrow, last_.depth, y, last_.width, latents, Activation::kNone, y},
               stream);
}

// ---- g_s ----------------------------------------------------------------------------------------

namespace {

struct CompandSource : strict::RowsSource {
  __device__ float at(const Row& row, const Column& column) const {
    return strict::compand(strict::RowsSource::at(row, column));
  }
};

constexpr int kThreads = 256;

__device__ uint8_t to_byte(float x) {
  const float sample = strict::smaller(strict::larger(x, 0.0f), 1.0f) * 255.0f;
  return static_cast<uint8_t>(strict::round_half_even(sample));
}

__global__ void __launch_bounds__(kThreads)
    write_pixels_kernel(const float* samples,  // [.., columns, 8, 8, 3]
                        int64_t columns, int64_t height, int64_t width, bool grey,
                        uint8_t* rgb) {  // [height, width, 3]
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < height * width;
       i += step) {
    const int64_t y = i / width, x = i % width;
    const int64_t pixel =
        ((y / kHalf * columns + x / kHalf) * kHalf + y % kHalf) * kHalf + x % kHalf;
    const float* colours = samples + pixel * kColours;
    float red = colours[0], green = colours[1], blue = colours[2];
    if (grey) red = green = blue = ((red + green) + blue) / 3.0f;
    uint8_t* out = rgb + i * kColours;
    out[0] = to_byte(red);
    out[1] = to_byte(green);
    out[2] = to_byte(blue);
  }
}

}  // namespace

DevicePatchSynthesis::DevicePatchSynthesis(const PatchSynthesis& transform)
    : linear_(transform.linear()),
      first_(transform.first()),
      split_(transform.split()),
      last_(transform.last()),
      late_(transform.late()),
      early_(transform.early()) {}

DevicePatchSynthesis::Scratch DevicePatchSynthesis::take(DeviceLayout& layout,
                                                         int64_t latent_height,
                                                         int64_t latent_width) const {
  const int64_t latents = latent_height * latent_width;
  Scratch scratch{};
  scratch.narrow = layout.take<float>(latents * first_.width);
  scratch.wide = layout.take<float>(4 * latents * last_.depth);
  scratch.blocks = scratch.samples = layout.take<float>(std::max(
      {4 * latents * kSamples, early_.scratch_size(4 * latents), late_.scratch_size(latents)}));
  return scratch;
}

void DevicePatchSynthesis::run(const float* y_hat, int64_t latent_height, int64_t latent_width,
                               int64_t height, int64_t width, bool grey, uint8_t* rgb,
                               const Scratch& scratch, void* stream) const {
  const int64_t latents = latent_height * latent_width;
  const int64_t rows = 2 * latent_height, columns = 2 * latent_width;  // at 1/8
  const auto shuffle = [&](const strict::DeviceLinear& layer, const float* x, float* out) {
    const strict::RowsSource source{x, layer.depth};
    const ShuffleSink sink{out, rows, columns, layer.width / 4, latent_width, Activation::kNone};
    strict::launch_linear_kernel("shuffle", shape_of(layer, latents), source, sink, stream);
  };
  const CompandSource companded{{y_hat, first_.depth}};
  launch_layer("compand", first_, latents, companded, scratch.narrow, stream);
  late_.run(scratch.narrow, latent_height, latent_width, scratch.blocks, stream);
  shuffle(split_, scratch.narrow, scratch.wide);
  early_.run(scratch.wide, rows, columns, scratch.blocks, stream);

  shuffle(linear_, y_hat, scratch.samples);
  launch_layer(last_,
               {scratch.wide, last_.depth, scratch.samples, last_.width, 4 * latents,
                Activation::kNone, scratch.samples},
               stream);
  launch("write_pixels", write_pixels_kernel, grid_size(height * width, kThreads), kThreads, 0,
         stream, static_cast<const float*>(scratch.samples), columns, height, width, grey, rgb);
}

}  // namespace groupedmixer::transform
