// SPDX-License-Identifier: MIT
//
// The transforms against docs/numerics.md written down plainly, on whole images: all bits, for odd
// sizes, regions, strips, bands and numbers of threads. GROUPEDMIXER_ISA chooses the variant under
// test; the reference has none. Sources are those of csrc/transform, csrc/strict (*_isa.cpp once
// per variant) and csrc/common/{isa,team,weight_map}.cpp.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "common/team.h"
#include "strict/kernels.h"
#include "strict/math.h"
#include "testing.h"
#include "transform/hyper.h"
#include "transform/patch.h"
#include "transform_weights.h"

using namespace groupedmixer;
using namespace groupedmixer::transform;

namespace {

Watch unwatched;

// Not floats compared: a zero's sign counts.
bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// ---- the reference ------------------------------------------------------------------------------

struct Image {
  int64_t height, width, channels;
  std::vector<float> x;

  Image(int64_t h, int64_t w, int64_t c)
      : height(h), width(w), channels(c), x(static_cast<size_t>(h * w * c)) {}
  float& at(int64_t i, int64_t j, int64_t c) {
    return x[static_cast<size_t>((i * width + j) * channels + c)];
  }
  float at(int64_t i, int64_t j, int64_t c) const { return const_cast<Image*>(this)->at(i, j, c); }
  float outside_is_zero(int64_t i, int64_t j, int64_t c) const {
    return i < 0 || i >= height || j < 0 || j >= width ? 0.0f : at(i, j, c);
  }
};

float dot(const std::vector<float>& a, const float* w, float sum) {
  float total = 0;
  const size_t segment = strict::kSegment;
  for (size_t k = 0; k < a.size(); ++k) {
    if (k > 0 && k % segment == 0) {
      total = k == segment ? sum : total + sum;
      sum = 0;
    }
    sum = strict::fused(a[k], w[k], sum);
  }
  return a.size() > segment ? total + sum : sum;
}

Image convolve(const Image& in, const Layer& layer, int64_t stride = 1) {
  Image out(in.height / stride, in.width / stride, layer.width);
  const int64_t padding = layer.side / 2, depth = layer.channels * layer.side * layer.side;
  std::vector<float> taps, weight(static_cast<size_t>(depth));
  for (int64_t i = 0; i < out.height; ++i) {
    for (int64_t j = 0; j < out.width; ++j) {
      taps.clear();
      for (int64_t k = 0; k < layer.side; ++k) {
        for (int64_t l = 0; l < layer.side; ++l) {
          for (int64_t c = 0; c < layer.channels; ++c) {
            taps.push_back(
                in.outside_is_zero(i * stride + k - padding, j * stride + l - padding, c));
          }
        }
      }
      for (int64_t n = 0; n < layer.width; ++n) {
        size_t t = 0;
        for (int64_t kl = 0; kl < layer.side * layer.side; ++kl) {
          for (int64_t c = 0; c < layer.channels; ++c) {
            weight[t++] = layer.weight[static_cast<size_t>(
                (n * layer.channels + c) * layer.side * layer.side + kl)];
          }
        }
        out.at(i, j, n) = dot(taps, weight.data(), layer.bias[static_cast<size_t>(n)]);
      }
    }
  }
  return out;
}

Image depthwise(const Image& in, const Layer& layer) {
  Image out(in.height, in.width, in.channels);
  for (int64_t i = 0; i < in.height; ++i) {
    for (int64_t j = 0; j < in.width; ++j) {
      for (int64_t c = 0; c < in.channels; ++c) {
        float sum = layer.bias[static_cast<size_t>(c)];
        for (int64_t t = 0; t < 9; ++t) {
          sum = strict::fused(in.outside_is_zero(i + t / 3 - 1, j + t % 3 - 1, c),
                              layer.weight[static_cast<size_t>(c * 9 + t)], sum);
        }
        out.at(i, j, c) = sum;
      }
    }
  }
  return out;
}

template <typename Function>
Image map(Image image, const Function& function) {
  for (float& x : image.x) x = function(x);
  return image;
}

Image compand(const Image& image) {
  return map(image, [](float x) { return strict::compand(x); });
}

Image leaky(const Image& image) {
  return map(image, [](float x) { return strict::leaky_relu(x); });
}

Image add(Image a, const Image& b) {
  for (size_t i = 0; i < a.x.size(); ++i) a.x[i] = a.x[i] + b.x[i];
  return a;
}

Image shuffle(const Image& in, int64_t side) {
  Image out(in.height * side, in.width * side, in.channels / (side * side));
  for (int64_t i = 0; i < out.height; ++i) {
    for (int64_t j = 0; j < out.width; ++j) {
      for (int64_t c = 0; c < out.channels; ++c) {
        out.at(i, j, c) = in.at(i / side, j / side, (c * side + i % side) * side + j % side);
      }
    }
  }
  return out;
}

Image unshuffle(const Image& in, int64_t side) {
  Image out(in.height / side, in.width / side, in.channels * side * side);
  for (int64_t i = 0; i < in.height; ++i) {
    for (int64_t j = 0; j < in.width; ++j) {
      for (int64_t c = 0; c < in.channels; ++c) {
        out.at(i / side, j / side, (c * side + i % side) * side + j % side) = in.at(i, j, c);
      }
    }
  }
  return out;
}

// Repeats the last row and column.
Image pad(const Image& in, int64_t height, int64_t width) {
  Image out(height, width, in.channels);
  for (int64_t i = 0; i < height; ++i) {
    for (int64_t j = 0; j < width; ++j) {
      for (int64_t c = 0; c < in.channels; ++c) {
        out.at(i, j, c) = in.at(std::min(i, in.height - 1), std::min(j, in.width - 1), c);
      }
    }
  }
  return out;
}

Image run_blocks(Weights& weights, const std::string& prefix, int64_t first, int64_t depth,
                 Image x) {
  for (int64_t i = first; i < first + depth; ++i) {
    const std::string name = prefix + std::to_string(i);
    const auto layer = [&](const char* part) -> const Layer& {
      return weights.layers.at(name + part);
    };
    const Image seen = leaky(convolve(x, layer(".spatial.0")));
    x = add(x, convolve(depthwise(seen, layer(".spatial.2")), layer(".spatial.3")));
    x = add(x, convolve(leaky(convolve(x, layer(".pointwise.0"))), layer(".pointwise.2")));
  }
  return x;
}

Image analyse(Weights& weights, const PatchSizes& s, const Image& picture) {
  const auto layer = [&](int64_t i) -> const Layer& {
    return weights.layers.at("g_a.network." + std::to_string(i));
  };
  Image x = convolve(unshuffle(picture, 8), layer(1));
  x = run_blocks(weights, "g_a.network.", 2, s.early, x);
  x = convolve(unshuffle(x, 2), layer(3 + s.early));
  x = run_blocks(weights, "g_a.network.", 4 + s.early, s.late, x);
  return add(convolve(unshuffle(picture, 16), weights.layers.at("g_a.linear")),
             convolve(x, layer(4 + s.early + s.late)));
}

Image synthesise(Weights& weights, const PatchSizes& s, const Image& y_hat) {
  const auto layer = [&](int64_t i) -> const Layer& {
    return weights.layers.at("g_s.network." + std::to_string(i));
  };
  Image x = convolve(compand(y_hat), layer(0));
  x = run_blocks(weights, "g_s.network.", 1, s.late, x);
  x = shuffle(convolve(x, layer(1 + s.late)), 2);
  x = run_blocks(weights, "g_s.network.", 3 + s.late, s.early, x);
  return add(shuffle(convolve(y_hat, weights.layers.at("g_s.linear")), 16),
             shuffle(convolve(x, layer(3 + s.late + s.early)), 8));
}

std::vector<uint8_t> to_bytes(const Image& image, const PixelRegion& region, bool grey) {
  std::vector<uint8_t> bytes;
  for (int64_t i = region.top; i < region.bottom; ++i) {
    for (int64_t j = region.left; j < region.right; ++j) {
      const float mean = ((image.at(i, j, 0) + image.at(i, j, 1)) + image.at(i, j, 2)) / 3.0f;
      for (int64_t c = 0; c < 3; ++c) {
        const float x = grey ? mean : image.at(i, j, c);
        const float sample = strict::smaller(strict::larger(x, 0.0f), 1.0f) * 255.0f;
        bytes.push_back(static_cast<uint8_t>(strict::round_half_even(sample)));
      }
    }
  }
  return bytes;
}

// ---- tests ------------------------------------------------------------------------------------

// None is a multiple of the vectors' or the panels' width.
constexpr int64_t kM = 20, kHyperWidth = 19, kHyperChannels = 7, kFeatures = 33;

// What kernels computed is checked in transforms; maps that they have no use for are checked here.
void test_maps() {
  Random random(3);
  for (const int64_t count : {1, 15, 16, 17, 100}) {
    const std::vector<float> x = noise(random, count, 3.0f), before = noise(random, count, 3.0f);
    const auto check = [&](void (*kernel)(const strict::MapParams&), auto expected) {
      std::vector<float> out = before, wanted = before;
      for (size_t i = 0; i < x.size(); ++i) wanted[i] = expected(x[i], before[i]);
      kernel({x.data(), out.data(), count});
      CHECK(same(out, wanted));
    };
    const strict::Kernels& kernels = strict::kernels();
    check(kernels.compand, [](float value, float) { return strict::compand(value); });
    check(kernels.leaky_relu, [](float value, float) { return strict::leaky_relu(value); });
    check(kernels.half_tanh, [](float value, float out) {
      return strict::fused(strict::hyperbolic_tangent(value), 0.5f, out);
    });
  }
}

// Whole images, and parts of one: rows outside the part have to stay as they are.
void test_depthwise() {
  Random random(4);
  for (const int64_t channels : {1, 16, 19, 48}) {
    for (const auto& [height, width] :
         {std::pair<int64_t, int64_t>{1, 1}, {1, 5}, {4, 2}, {5, 7}}) {
      Weights weights;
      weights.add(random, "taps", channels, 1, 3);
      const Layer& layer = weights.layers.at("taps");
      std::vector<float> taps;
      for (int64_t t = 0; t < 9; ++t) {
        for (int64_t c = 0; c < channels; ++c) {
          taps.push_back(layer.weight[static_cast<size_t>(c * 9 + t)]);
        }
      }
      Image image(height, width, channels);
      image.x = noise(random, height * width * channels, 1.0f);
      const Image whole = depthwise(image, layer);
      for (int64_t begin = 0; begin < height; ++begin) {
        for (int64_t end = begin; end <= height; ++end) {
          Image out(height, width, channels), wanted(height, width, channels);
          const int64_t pitch = width * channels;
          std::copy(whole.x.begin() + begin * pitch, whole.x.begin() + end * pitch,
                    wanted.x.begin() + begin * pitch);
          strict::kernels().depthwise3x3({image.x.data(), taps.data(), layer.bias.data(),
                                          out.x.data(), height, width, channels, begin, end});
          CHECK(same(out.x, wanted.x));
        }
      }
    }
  }
}

void test_hyper_analysis() {
  Random random(5);
  Weights weights = make_hyper_analysis(kM, kHyperWidth, kHyperChannels);
  for (const auto& [height, width] :
       {std::pair<int64_t, int64_t>{1, 1}, {4, 8}, {5, 3}, {14, 10}, {35, 2}}) {
    Image y(height, width, kM);
    y.x = noise(random, height * width * kM, 2.0f);
    Image x = pad(compand(y), (height + 3) / 4 * 4, (width + 3) / 4 * 4);
    x = leaky(convolve(x, weights.layers.at("h_a.0")));
    x = leaky(convolve(x, weights.layers.at("h_a.2"), 2));
    const Image z = convolve(x, weights.layers.at("h_a.4"), 2);
    for (const int64_t strip : {0, 1, 2, 3}) {
      for (const int threads : {1, 2, 3}) {
        const HyperAnalysis transform(weights.map, "h_a.", kM, kHyperWidth, kHyperChannels, strip);
        std::vector<float> out(z.x.size());
        std::vector<float> scratch(
            static_cast<size_t>(transform.scratch_size(threads, height, width)), NAN);
        // From no more rows of the latent than it says.
        for (int64_t begin = 0, step = 1 + threads; begin < z.height; begin += step) {
          const int64_t end = std::min(begin + step, z.height);
          const int64_t first = std::max(4 * begin - 4, int64_t{0}), pitch = width * kM;
          const std::vector<float> rows(y.x.begin() + first * pitch,
                                        y.x.begin() + HyperAnalysis::depth(end, height) * pitch);
          run_team(threads, [&](const Member& member) {
            transform.run(member, rows.data(), first, height, width, {begin, end},
                          out.data() + begin * z.width * kHyperChannels, scratch.data(), unwatched);
          });
        }
        CHECK(same(out, z.x));
      }
    }
  }
}

void test_hyper_synthesis() {
  Random random(6);
  Weights weights = make_hyper_synthesis(kHyperChannels, kHyperWidth, kFeatures);
  const HyperSynthesis transform(weights.map, "h_s.", kHyperChannels, kHyperWidth, kFeatures);
  for (const auto& [height, width] : {std::pair<int64_t, int64_t>{1, 1}, {2, 3}, {5, 4}}) {
    Image z(height, width, kHyperChannels);
    z.x = noise(random, height * width * kHyperChannels, 2.0f);
    Image x = leaky(shuffle(convolve(z, weights.layers.at("h_s.0.0")), 2));
    x = leaky(shuffle(convolve(x, weights.layers.at("h_s.2.0")), 2));
    const Image psi = convolve(x, weights.layers.at("h_s.4"));
    for (int round = 0; round < 40; ++round) {
      Grid region{0, 0, psi.height, psi.width};
      if (round > 0) {
        region.top = static_cast<int64_t>(random()) % psi.height;
        region.left = static_cast<int64_t>(random()) % psi.width;
        region.rows = 1 + static_cast<int64_t>(random()) % (psi.height - region.top);
        region.columns = 1 + static_cast<int64_t>(random()) % (psi.width - region.left);
      }
      std::vector<float> wanted;
      for (int64_t i = 0; i < region.rows; ++i) {
        for (int64_t j = 0; j < region.columns; ++j) {
          for (int64_t c = 0; c < kFeatures; ++c) {
            wanted.push_back(psi.at(region.top + i, region.left + j, c));
          }
        }
      }
      const int threads = 1 + round % 3;
      // Of no more rows of z than it says; those behind them are not finite.
      std::vector<float> known = z.x;
      const int64_t depth = HyperSynthesis::depth(region.top + region.rows, height);
      std::fill(known.begin() + depth * width * kHyperChannels, known.end(), NAN);
      std::vector<float> out(wanted.size());
      std::vector<float> scratch(static_cast<size_t>(transform.scratch_size(threads, region)), NAN);
      run_team(threads, [&](const Member& member) {
        transform.run(member, known.data(), height, width, region, out.data(), scratch.data());
      });
      CHECK(same(out, wanted));
    }
  }
}

struct PictureSize {
  int64_t height, width;
  int64_t latent_height, latent_width;  // may be more than the pixels fill
};

constexpr PictureSize kPictures[] = {
    {1, 1, 1, 1}, {16, 16, 2, 2}, {3, 200, 1, 13}, {65, 129, 5, 9}, {150, 20, 10, 2},
};
constexpr PatchTiling kTilings[] = {{0, 512}, {1, 512}, {2, 3}, {3, 1}, {100, 4}};

void test_patch_analysis(const PatchSizes& sizes) {
  Weights weights = make_analysis(sizes);
  Random random(7);
  for (const PictureSize& p : kPictures) {
    std::vector<uint8_t> rgb;
    for (int64_t i = 0; i < p.height * p.width * 3; ++i) {
      rgb.push_back(static_cast<uint8_t>(random() >> 7));
    }
    Image picture(p.height, p.width, 3);
    for (size_t i = 0; i < rgb.size(); ++i) {
      picture.x[i] = strict::fused(static_cast<float>(rgb[i]), 0x1.010102p-8f, -0.5f);
    }
    const Image wanted =
        analyse(weights, sizes, pad(picture, 16 * p.latent_height, 16 * p.latent_width));
    int threads = 0;
    for (const PatchTiling& tiling : kTilings) {
      threads = threads % 3 + 1;
      const PatchAnalysis transform(weights.map, "g_a.", sizes, tiling);
      const int64_t size = transform.scratch_size(threads, p.latent_height, p.latent_width);
      std::vector<float> scratch(static_cast<size_t>(size), NAN);
      // In runs of `step` rows, by teams of other sizes.
      for (const int64_t step : {p.latent_height, int64_t{1}, int64_t{3}}) {
        const int64_t pitch = p.latent_width * sizes.latent_channels;
        const int64_t ahead = transform.rows_ahead(threads, p.latent_height, p.latent_width);
        std::vector<float> y(wanted.x.size(), NAN);
        for (int64_t from = 0; from < p.latent_height; from += step) {
          const int64_t to = std::min(from + step, p.latent_height);
          // Rows before `from` are no longer there, and those it may not write stay as they are.
          const LatentRows<float> rows{y.data() + from * pitch, from};
          const std::vector<float> before = y;
          run_team(1 + static_cast<int>(from) % threads, [&](const Member& member) {
            transform.run(member, threads, rgb.data(), p.height, p.width, p.latent_height,
                          p.latent_width, from, to, rows, scratch.data(), unwatched);
          });
          const int64_t end = std::min(to + ahead, p.latent_height);
          CHECK(std::memcmp(y.data() + end * pitch, before.data() + end * pitch,
                            (y.size() - static_cast<size_t>(end * pitch)) * sizeof(float)) == 0);
          CHECK(std::memcmp(y.data(), wanted.x.data(),
                            static_cast<size_t>(to * pitch) * sizeof(float)) == 0);
        }
      }
    }
  }
}

void test_patch_synthesis(const PatchSizes& sizes) {
  Weights weights = make_synthesis(sizes);
  Random random(8);
  for (const PictureSize& p : kPictures) {
    Image y_hat(p.latent_height, p.latent_width, sizes.latent_channels);
    y_hat.x = noise(random, static_cast<int64_t>(y_hat.x.size()), 0.3f);
    const Image picture = synthesise(weights, sizes, y_hat);
    int round = 0;
    for (const PatchTiling& tiling : kTilings) {
      const PatchSynthesis transform(weights.map, "g_s.", sizes, tiling);
      for (int i = 0; i < 4; ++i, ++round) {
        PixelRegion region{0, 0, p.height, p.width};
        if (i > 1) {
          region.top = static_cast<int64_t>(random()) % p.height;
          region.left = static_cast<int64_t>(random()) % p.width;
          region.bottom = region.top + 1 + static_cast<int64_t>(random()) % (p.height - region.top);
          region.right = region.left + 1 + static_cast<int64_t>(random()) % (p.width - region.left);
        }
        const bool grey = i % 2 == 1;
        const int threads = 1 + round % 3;
        const std::vector<uint8_t> wanted = to_bytes(picture, region, grey);
        std::vector<uint8_t> rgb(wanted.size());
        const int64_t size =
            transform.scratch_size(threads, p.latent_height, p.latent_width, region);
        std::vector<float> scratch(static_cast<size_t>(size), NAN);
        const PatchSynthesis::Rows rows = transform.rows_of(region, p.latent_height);
        const int64_t behind =
            transform.rows_behind(threads, p.latent_height, p.latent_width, region);
        const int64_t step = i % 2 == 0 ? rows.end - rows.begin : 1 + round % 4;
        const int64_t pitch = p.latent_width * sizes.latent_channels;
        for (int64_t from = rows.begin; from < rows.end; from += step) {
          const int64_t to = std::min(from + step, rows.end);
          const int64_t first = std::max(from - behind, rows.begin);
          const std::vector<float> known(y_hat.x.begin() + first * pitch,
                                         y_hat.x.begin() + to * pitch);
          run_team(1 + static_cast<int>(to) % threads, [&](const Member& member) {
            transform.run(member, threads, {known.data(), first}, p.latent_height, p.latent_width,
                          region, from, to, grey, rgb.data(), scratch.data(), unwatched);
          });
        }
        CHECK(rgb == wanted);
      }
    }
  }
}

}  // namespace

int main() {
  test_maps();
  test_depthwise();
  test_hyper_analysis();
  test_hyper_synthesis();
  for (const PatchSizes& sizes :
       {PatchSizes{kM, 18, 35, 2, 1}, {kM, 16, 32, 1, 2}, {kM, 7, 9, 0, 0}, {kM, 7, 9, 3, 0}}) {
    test_patch_analysis(sizes);
    test_patch_synthesis(sizes);
  }
  std::printf("passed\n");
  return 0;
}
