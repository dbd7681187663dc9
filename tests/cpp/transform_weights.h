// SPDX-License-Identifier: MIT
//
// Random weights of all transforms, by the names under which files have them.

#pragma once

#include <cmath>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "common/weight_map.h"
#include "testing.h"
#include "transform/patch.h"

struct Layer {
  int64_t width, channels, side;
  std::vector<float> weight, bias;
};

// Layers by name, as the transforms under test get them and as a reference does. One points into
// the other.
struct Weights {
  Weights() = default;
  Weights(Weights&&) = default;

  std::map<std::string, Layer> layers;
  groupedmixer::WeightMap map;

  void add(Random& random, const std::string& name, int64_t width, int64_t channels, int64_t side) {
    const int64_t depth = channels * side * side;
    const float spread = 1.5f / std::sqrt(static_cast<float>(depth));
    Layer& layer = layers[name];
    layer = {width, channels, side, noise(random, width * depth, spread),
             noise(random, width, 0.1f)};
    map.add(name + ".weight", {width, channels, side, side}, layer.weight.data());
    map.add(name + ".bias", {width}, layer.bias.data());
  }
};

inline void add_blocks(Random& random, Weights& weights, const std::string& prefix, int64_t first,
                       int64_t depth, int64_t channels) {
  for (int64_t i = first; i < first + depth; ++i) {
    const std::string name = prefix + std::to_string(i);
    weights.add(random, name + ".spatial.0", channels, channels, 1);
    weights.add(random, name + ".spatial.2", channels, 1, 3);
    weights.add(random, name + ".spatial.3", channels, channels, 1);
    weights.add(random, name + ".pointwise.0", 2 * channels, channels, 1);
    weights.add(random, name + ".pointwise.2", channels, 2 * channels, 1);
  }
}

inline Weights make_hyper_analysis(int64_t latent_channels, int64_t width, int64_t channels) {
  Random random(9);
  Weights weights;
  weights.add(random, "h_a.0", width, latent_channels, 3);
  weights.add(random, "h_a.2", width, width, 3);
  weights.add(random, "h_a.4", channels, width, 3);
  return weights;
}

inline Weights make_hyper_synthesis(int64_t channels, int64_t width, int64_t features) {
  Random random(10);
  Weights weights;
  weights.add(random, "h_s.0.0", 4 * width, channels, 3);
  weights.add(random, "h_s.2.0", 4 * width, width, 3);
  weights.add(random, "h_s.4", features, width, 1);
  return weights;
}

inline Weights make_analysis(const groupedmixer::transform::PatchSizes& s) {
  Random random(1);
  Weights weights;
  const std::string prefix = "g_a.network.";
  weights.add(random, "g_a.linear", s.latent_channels, 768, 1);
  weights.add(random, prefix + "1", s.wide, 192, 1);
  add_blocks(random, weights, prefix, 2, s.early, s.wide);
  weights.add(random, prefix + std::to_string(3 + s.early), s.narrow, 4 * s.wide, 1);
  add_blocks(random, weights, prefix, 4 + s.early, s.late, s.narrow);
  weights.add(random, prefix + std::to_string(4 + s.early + s.late), s.latent_channels, s.narrow,
              1);
  return weights;
}

inline Weights make_synthesis(const groupedmixer::transform::PatchSizes& s) {
  Random random(2);
  Weights weights;
  const std::string prefix = "g_s.network.";
  weights.add(random, "g_s.linear", 768, s.latent_channels, 1);
  weights.add(random, prefix + "0", s.narrow, s.latent_channels, 1);
  add_blocks(random, weights, prefix, 1, s.late, s.narrow);
  weights.add(random, prefix + std::to_string(1 + s.late), 4 * s.wide, s.narrow, 1);
  add_blocks(random, weights, prefix, 3 + s.late, s.early, s.wide);
  weights.add(random, prefix + std::to_string(3 + s.late + s.early), 192, s.wide, 1);
  return weights;
}
