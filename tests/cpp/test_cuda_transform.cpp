// SPDX-License-Identifier: MIT
//
// The transforms on a GPU, executed on the host (cuda_host/cuda_runtime.h), give the bits of those
// of the CPU, whatever the order of threads. So do the kernels that they share with operators.

#include <algorithm>
#include <cmath>
#include <utility>

#include "common/device_memory.h"
#include "common/float_mode.h"
#include "common/team.h"
#include "cuda_testing.h"
#include "strict/convolution_cuda.h"
#include "strict/map_cuda.h"
#include "strict/packed.h"
#include "transform/device_hyper.h"
#include "transform/device_patch.h"
#include "transform_weights.h"

namespace {

using namespace groupedmixer;
using namespace groupedmixer::transform;
using cuda_host::Order;
using strict::Activation;

using Shape = std::pair<int64_t, int64_t>;  // height, width

Watch unwatched;

// ---- strict/map_cuda.cu -------------------------------------------------------------------------

void test_maps(Random& random) {
  const ScopedFloatMode mode;
  for (const int64_t count : {0, 1, 255, 257, 4096 * 256 + 5}) {
    const std::vector<float> x = noise(random, count, 3.0f), before = noise(random, count, 3.0f);
    const auto check = [&](void (*kernel)(const strict::MapParams&),
                           void (*launch_kernel)(const strict::MapParams&, void*)) {
      std::vector<float> out = before;
      kernel({x.data(), out.data(), count});
      const Device<float> device_x(x), device_out(before);
      launch_kernel({device_x.data(), device_out.data(), count}, nullptr);
      CHECK(device_out == out);
    };
    check(strict::kernels().compand, strict::launch_compand);
    if (count > 1000) continue;  // more than the grid has threads: once
    check(strict::kernels().leaky_relu, strict::launch_leaky_relu);
    check(strict::kernels().half_tanh, strict::launch_half_tanh);
  }
}

// ---- strict/convolution_cuda.cu -----------------------------------------------------------------

// Some rows of an image; the others stay as they are.
void check_depthwise(Random& random, const Shape& shape, int64_t channels, int64_t row_begin,
                     int64_t row_end) {
  const auto [height, width] = shape;
  const std::vector<float> x = noise(random, height * width * channels, 1.0f);
  const std::vector<float> weight = noise(random, 9 * channels, 1.0f);
  const std::vector<float> bias = noise(random, channels, 1.0f);
  std::vector<float> out = noise(random, height * width * channels, 1.0f);
  const Device<float> device_x(x), device_weight(weight), device_bias(bias), device_out(out);
  strict::kernels().depthwise3x3({x.data(), weight.data(), bias.data(), out.data(), height, width,
                                  channels, row_begin, row_end});
  strict::launch_depthwise3x3({device_x.data(), device_weight.data(), device_bias.data(),
                               device_out.data(), height, width, channels, row_begin, row_end},
                              nullptr);
  CHECK(device_out == out);
}

void test_depthwise(Random& random) {
  const ScopedFloatMode mode;
  check_depthwise(random, {1, 1}, 1, 0, 1);
  check_depthwise(random, {3, 4}, 32, 0, 3);
  check_depthwise(random, {5, 9}, 67, 1, 4);
  check_depthwise(random, {9, 6}, 31, 0, 9);
  check_depthwise(random, {2, 3}, 5, 1, 1);
}

void check_convolution(Random& random, const Shape& shape, int64_t channels, int64_t out_channels,
                       int64_t stride, Activation activation) {
  const auto [height, width] = shape;
  const int64_t depth = 9 * channels;
  const Grid grid{0, 0, ceil_div(height, stride), ceil_div(width, stride)};
  const std::vector<float> x = noise(random, height * width * channels, 1.0f);
  const strict::PackedLinear layer =
      strict::pack_convolution(noise(random, out_channels * depth, 0.3f).data(),
                               noise(random, out_channels, 1.0f).data(), out_channels, channels, 3);
  std::vector<float> windows(static_cast<size_t>(grid.count() * depth));
  std::vector<float> out(static_cast<size_t>(grid.count() * out_channels));
  gather_windows({x.data(), 0, 0, width, channels, height, width}, stride, grid, 0, grid.count(),
                 windows.data());
  apply(layer, {windows.data(), depth, out.data(), out_channels, grid.count(), activation});

  const Device<float> device_x(x), device_out(out.size());
  const strict::DeviceLinear device_layer(layer);
  strict::launch_conv3x3(
      {device_x.data(), height, width, channels, stride, device_layer.weight.data(),
       device_layer.bias.data(), device_out.data(), out_channels, activation},
      nullptr);
  CHECK(device_out == out);
}

void test_convolution(Random& random) {
  const ScopedFloatMode mode;
  check_convolution(random, {1, 1}, 1, 1, 1, Activation::kNone);
  check_convolution(random, {3, 5}, 7, 33, 1, Activation::kGelu);
  check_convolution(random, {5, 3}, 20, 32, 2, Activation::kLeakyRelu);
  check_convolution(random, {4, 7}, 67, 40, 2, Activation::kNone);
  check_convolution(random, {1, 6}, 65, 65, 1, Activation::kNone);
  check_convolution(random, {63, 66}, 3, 9, 1, Activation::kNone);  // the tile for many rows
}

// ---- transform/device_hyper.cu ------------------------------------------------------------------

// Scratch of a device transform for a picture of this size.
template <typename Transform>
class Scratch {
 public:
  Scratch(const Transform& transform, int64_t height, int64_t width)
      : memory_(measured(transform, height, width)) {
    std::memset(memory_.data(), 0xff, memory_.size());  // not-a-number
    DeviceLayout layout(memory_.data());
    parts_ = transform.take(layout, height, width);
  }

  const typename Transform::Scratch& parts() const { return parts_; }

 private:
  static size_t measured(const Transform& transform, int64_t height, int64_t width) {
    DeviceLayout layout;
    transform.take(layout, height, width);
    return layout.peak();
  }

  DeviceMemory memory_;
  typename Transform::Scratch parts_;
};

struct HyperSizes {
  int64_t latent_channels, width, channels, features;
};
constexpr HyperSizes kHyperSizes[] = {{6, 5, 3, 32}, {37, 33, 18, 40}};
constexpr Shape kLatents[] = {{1, 1}, {2, 3}, {5, 4}, {7, 9}, {8, 12}};

void test_hyper_analysis(Random& random, const HyperSizes& s) {
  const Weights weights = make_hyper_analysis(s.latent_channels, s.width, s.channels);
  const HyperAnalysis transform(weights.map, "h_a.", s.latent_channels, s.width, s.channels);
  const DeviceHyperAnalysis device_transform(transform);
  for (const auto& [h, w] : kLatents) {
    const int64_t height = h, width = w;
    const std::vector<float> scaled = noise(random, height * width * s.latent_channels, 2.0f);
    std::vector<float> z(
        static_cast<size_t>(ceil_div(height, 4) * ceil_div(width, 4) * s.channels));
    std::vector<float> scratch(static_cast<size_t>(transform.scratch_size(1, height, width)));
    run_team(1, [&](const Member& member) {
      transform.run(member, scaled.data(), 0, height, width, {0, ceil_div(height, 4)}, z.data(),
                    scratch.data(), unwatched);
    });
    const Device<float> device_scaled(scaled), device_z(z.size());
    const Scratch<DeviceHyperAnalysis> device_scratch(device_transform, height, width);
    device_transform.run(device_scaled.data(), height, width, device_z.data(),
                         device_scratch.parts(), nullptr);
    CHECK(device_z == z);
  }
}

void test_hyper_synthesis(Random& random, const HyperSizes& s) {
  const Weights weights = make_hyper_synthesis(s.channels, s.width, s.features);
  const HyperSynthesis transform(weights.map, "h_s.", s.channels, s.width, s.features);
  const DeviceHyperSynthesis device_transform(transform);
  for (const auto& [h, w] : kLatents) {
    const int64_t height = h, width = w, rows = ceil_div(h, 4), columns = ceil_div(w, 4);
    const std::vector<float> z_hat = noise(random, rows * columns * s.channels, 2.0f);
    const Grid all{0, 0, height, width};
    std::vector<float> psi(static_cast<size_t>(height * width * s.features));
    std::vector<float> scratch(static_cast<size_t>(transform.scratch_size(1, all)));
    run_team(1, [&](const Member& member) {
      transform.run(member, z_hat.data(), rows, columns, all, psi.data(), scratch.data());
    });
    const Device<float> device_z_hat(z_hat), device_psi(psi.size());
    const Scratch<DeviceHyperSynthesis> device_scratch(device_transform, height, width);
    device_transform.run(device_z_hat.data(), height, width, device_psi.data(),
                         device_scratch.parts(), nullptr);
    CHECK(device_psi == psi);
  }
}

// ---- transform/device_patch.cu, transform/device_blocks.cu --------------------------------------

struct PictureSize {
  int64_t height, width;
  int64_t latent_height, latent_width;  // may be more than the pixels fill
};
constexpr PictureSize kPictures[] = {
    {1, 1, 1, 1}, {17, 33, 2, 3}, {31, 16, 2, 1}, {16, 16, 2, 2}, {75, 61, 5, 4},
};

void check_patch_analysis(Random& random, const PatchAnalysis& transform,
                          const DevicePatchAnalysis& device_transform, const PictureSize& p) {
  std::vector<uint8_t> rgb(static_cast<size_t>(p.height * p.width * 3));
  for (uint8_t& sample : rgb) sample = static_cast<uint8_t>(random() >> 7);
  std::vector<float> y(
      static_cast<size_t>(p.latent_height * p.latent_width * transform.last().width));
  std::vector<float> scratch(
      static_cast<size_t>(transform.scratch_size(1, p.latent_height, p.latent_width)));
  run_team(1, [&](const Member& member) {
    transform.run(member, 1, rgb.data(), p.height, p.width, p.latent_height, p.latent_width, 0,
                  p.latent_height, {y.data(), 0}, scratch.data(), unwatched);
  });
  const Device<uint8_t> device_rgb(rgb);
  const Device<float> device_y(y.size());
  const Scratch<DevicePatchAnalysis> device_scratch(device_transform, p.latent_height,
                                                    p.latent_width);
  device_transform.run(device_rgb.data(), p.height, p.width, p.latent_height, p.latent_width,
                       device_y.data(), device_scratch.parts(), nullptr);
  CHECK(device_y == y);
}

void check_patch_synthesis(const std::vector<float>& y_hat, const PatchSynthesis& transform,
                           const DevicePatchSynthesis& device_transform, const PictureSize& p) {
  const PixelRegion all{0, 0, p.height, p.width};
  std::vector<float> scratch(
      static_cast<size_t>(transform.scratch_size(1, p.latent_height, p.latent_width, all)));
  const Device<float> device_y_hat(y_hat);
  const Scratch<DevicePatchSynthesis> device_scratch(device_transform, p.latent_height,
                                                     p.latent_width);
  for (const bool grey : {false, true}) {
    std::vector<uint8_t> rgb(static_cast<size_t>(p.height * p.width * 3));
    run_team(1, [&](const Member& member) {
      transform.run(member, 1, {y_hat.data(), 0}, p.latent_height, p.latent_width, all, 0,
                    p.latent_height, grey, rgb.data(), scratch.data(), unwatched);
    });
    const Device<uint8_t> device_rgb(rgb.size());
    device_transform.run(device_y_hat.data(), p.latent_height, p.latent_width, p.height, p.width,
                         grey, device_rgb.data(), device_scratch.parts(), nullptr);
    CHECK(device_rgb == rgb);
  }
}

void test_patch(Random& random) {
  for (const PatchSizes& sizes :
       {PatchSizes{6, 7, 9, 1, 1}, {20, 35, 18, 2, 0}, {36, 33, 70, 0, 2}}) {
    const Weights analysis_weights = make_analysis(sizes);
    const Weights synthesis_weights = make_synthesis(sizes);
    const PatchAnalysis analysis(analysis_weights.map, "g_a.", sizes);
    const PatchSynthesis synthesis(synthesis_weights.map, "g_s.", sizes);
    const DevicePatchAnalysis device_analysis(analysis);
    const DevicePatchSynthesis device_synthesis(synthesis);
    for (const PictureSize& picture : kPictures) {
      check_patch_analysis(random, analysis, device_analysis, picture);
      // Some samples are beyond black and white.
      const int64_t latents = picture.latent_height * picture.latent_width;
      const std::vector<float> y_hat = noise(random, latents * sizes.latent_channels, 0.4f);
      check_patch_synthesis(y_hat, synthesis, device_synthesis, picture);
    }
  }
}

// Colours whose mean is about half a byte: which byte it becomes is a matter of the last bits.
void test_grey(Random& random) {
  const PatchSizes sizes{6, 7, 9, 0, 0};
  Weights weights = make_synthesis(sizes);
  Layer& network = weights.layers.at("g_s.network.3");
  std::fill(network.weight.begin(), network.weight.end(), 0.0f);
  std::fill(network.bias.begin(), network.bias.end(), 0.0f);
  std::vector<float>& colours = weights.layers.at("g_s.linear").bias;  // [3, 16, 16]
  for (size_t i = 0; i < 256; ++i) {
    const float sum = (static_cast<float>(uniform(random, 0, 254)) + 0.5f) / 85.0f;
    colours[i] = noise(random, 1, 0.5f)[0];
    colours[256 + i] = noise(random, 1, 0.5f)[0];
    colours[512 + i] = sum - colours[i] - colours[256 + i];
  }
  const PatchSynthesis synthesis(weights.map, "g_s.", sizes);
  const DevicePatchSynthesis device_synthesis(synthesis);
  check_patch_synthesis(std::vector<float>(6), synthesis, device_synthesis, {16, 16, 1, 1});
}

}  // namespace

int main() {
  for (const Order order : {Order::kForward, Order::kReverse}) {
    cuda_host::set_order(order);
    Random random(20240611);
    test_maps(random);
    test_depthwise(random);
    test_convolution(random);
    for (const HyperSizes& sizes : kHyperSizes) {
      test_hyper_analysis(random, sizes);
      test_hyper_synthesis(random, sizes);
    }
    test_patch(random);
    test_grey(random);
  }
  std::printf("passed\n");
  return 0;
}
