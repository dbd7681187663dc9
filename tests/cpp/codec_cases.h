// SPDX-License-Identifier: MIT
//
// A small codec with random weights, for tests of the engine and of its parts.

#pragma once

#include <cmath>
#include <cstdint>
#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "codec/latent_coder.h"
#include "common/levels.h"
#include "entropy/tables.h"
#include "testing.h"
#include "transform/patch.h"

namespace codec_cases {

using namespace groupedmixer;

// Random weights under the names of weights files.
class Weights {
 public:
  WeightMap map;

  // A bias or table: its numbers are `middle` and a bit.
  void add(const std::string& name, const std::vector<int64_t>& shape, float spread,
           float middle = 0) {
    int64_t count = 1;
    for (const int64_t side : shape) count *= side;
    std::vector<float> values = noise(random_, count, spread);
    for (float& value : values) value += middle;
    values_.push_back(std::move(values));
    map.add(name, shape, values_.back().data());
  }

  void add_layer(const std::string& name, int64_t width, int64_t depth,
                 const std::vector<int64_t>& sides = {}) {
    std::vector<int64_t> shape = {width, depth};
    int64_t taps = depth;
    for (const int64_t side : sides) {
      shape.push_back(side);
      taps *= side;
    }
    add(name + ".weight", shape, 1 / std::sqrt(static_cast<float>(taps)));
    add(name + ".bias", {width}, 0.3f);
  }

  void add_norm(const std::string& name, int64_t width) {
    add(name + ".weight", {width}, 0.1f, 1);
    add(name + ".bias", {width}, 0.3f);
  }

 private:
  Random random_{1};
  std::deque<std::vector<float>> values_;
};

constexpr int64_t kHyperWidth = 5, kHyperChannels = 3;
constexpr transform::PatchSizes kPatch = {6, 7, 9, 1, 1};

inline codec::LatentSizes sizes_of(int64_t slices, int64_t patch_h, int64_t patch_w, bool lrp,
                                   int64_t layers, int64_t width = 32) {
  mixer::MixerSizes mixer = {slices, patch_h, patch_w, kPatch.latent_channels / slices,
                             width,  layers,  lrp,     {}};
  for (int64_t slice = slices; slice-- > 0;) {
    for (int64_t i = 0; i < patch_h; ++i) {
      for (int64_t j = 0; j < patch_w; ++j) mixer.order.push_back({slice, i, j});
    }
  }
  return {kPatch.latent_channels, kHyperWidth, kHyperChannels, mixer};
}

// Of `tables` tables from narrow to wide: a peak of all that is left over a floor of ones.
inline entropy::Tables make_tables(int64_t tables) {
  std::vector<uint16_t> counts;
  std::vector<int32_t> sizes, offsets;
  for (int32_t i = 0; i < tables; ++i) {
    const int32_t reach = 1 + 2 * i, size = 2 * reach + 2;
    sizes.push_back(size);
    offsets.push_back(-reach);
    for (int32_t slot = 0; slot < size; ++slot) {
      counts.push_back(static_cast<uint16_t>(slot == reach ? entropy::kTotal - size + 1 : 1));
    }
  }
  return entropy::Tables(counts.data(), static_cast<int64_t>(counts.size()), sizes.data(),
                         offsets.data(), tables);
}

constexpr int64_t kTables = 6;

inline void add_blocks(Weights& weights, const std::string& prefix, int64_t first, int64_t count,
                       int64_t width) {
  for (int64_t i = 0; i < count; ++i) {
    const std::string name = prefix + std::to_string(first + i);
    weights.add_layer(name + ".spatial.0", width, width, {1, 1});
    weights.add_layer(name + ".spatial.2", width, 1, {3, 3});
    weights.add_layer(name + ".spatial.3", width, width, {1, 1});
    weights.add_layer(name + ".pointwise.0", 2 * width, width, {1, 1});
    weights.add_layer(name + ".pointwise.2", width, 2 * width, {1, 1});
  }
}

inline Weights make_weights(const codec::LatentSizes& sizes) {
  const mixer::MixerSizes& mixer = sizes.mixer;
  const int64_t m = sizes.latent_channels, n = kHyperWidth, d = mixer.width, c = mixer.channels;
  const int64_t groups = mixer.groups(), slices = mixer.slices;
  Weights w;
  const std::string codec = "latent_codec.", context = codec + "context.";
  w.add(codec + "gain", {kLevels, m}, 0.1f, 2);
  w.add(codec + "shrinkage", {kLevels, m}, 0.1f, 1);
  w.add(codec + "hyper_gain", {kLevels, kHyperChannels}, 0.1f, 1);
  w.add(codec + "hyper_inverse_gain", {kLevels, kHyperChannels}, 0.1f, 1);
  w.add(codec + "z_medians", {kHyperChannels}, 0.3f);
  w.add(codec + "thresholds", {kTables - 1}, 0.5f);
  w.add(codec + "dead_zone", {kTables}, 0.1f, 0.6f);
  w.add_layer(codec + "h_a.layers.0", n, m, {3, 3});
  w.add_layer(codec + "h_a.layers.2", n, n, {3, 3});
  w.add_layer(codec + "h_a.layers.4", kHyperChannels, n, {3, 3});
  w.add_layer(codec + "h_s.layers.0.0", 4 * n, kHyperChannels, {3, 3});
  w.add_layer(codec + "h_s.layers.2.0", 4 * n, n, {3, 3});
  w.add_layer(codec + "h_s.layers.4", d, n, {1, 1});
  w.add(context + "start", {c}, 1);
  w.add(context + "embed_y", {slices, d, c}, 0.5f);
  w.add(context + "embed_y_bias", {slices, d}, 0.3f);
  w.add(context + "embed_hyper", {slices, d, d}, 0.2f);
  w.add(context + "embed_hyper_bias", {slices, d}, 0.3f);
  w.add(context + "embed_group", {groups, d}, 0.3f);
  w.add(context + "embed_level", {kLevels, d}, 0.3f);
  for (int64_t i = 0; i < mixer.layers; ++i) {
    const std::string block = context + "blocks." + std::to_string(i) + ".";
    for (const char* part : {"inner", "cross"}) {
      w.add_norm(block + part + ".norm", d);
      w.add_layer(block + part + ".qkv", 3 * d, d);
      w.add_layer(block + part + ".proj", d, d);
    }
    w.add(block + "inner.relative_bias", {mixer.heads(), 15 * 15}, 0.5f);
    w.add(block + "cross.step_bias", {mixer.heads(), groups, groups}, 0.5f);
    w.add_norm(block + "mlp.0", d);
    w.add_layer(block + "mlp.1", 4 * d, d);
    w.add_layer(block + "mlp.3", d, 4 * d);
  }
  w.add_norm(context + "norm", d);
  w.add(context + "head", {slices, 2 * c, d}, 0.2f);
  w.add(context + "head_bias", {slices, 2 * c}, 0.5f);
  if (mixer.lrp) {
    w.add(context + "lrp", {slices, c, d + c}, 0.2f);
    w.add(context + "lrp_bias", {slices, c}, 0.3f);
  }
  const int64_t wide = kPatch.wide, narrow = kPatch.narrow;
  w.add_layer("g_a.linear", m, 3 * 256, {1, 1});
  w.add_layer("g_a.network.1", wide, 3 * 64, {1, 1});
  add_blocks(w, "g_a.network.", 2, 1, wide);
  w.add_layer("g_a.network.4", narrow, 4 * wide, {1, 1});
  add_blocks(w, "g_a.network.", 5, 1, narrow);
  w.add_layer("g_a.network.6", m, narrow, {1, 1});
  w.add_layer("g_s.linear", 3 * 256, m, {1, 1});
  w.add_layer("g_s.network.0", narrow, m, {1, 1});
  add_blocks(w, "g_s.network.", 1, 1, narrow);
  w.add_layer("g_s.network.2", 4 * wide, narrow, {1, 1});
  add_blocks(w, "g_s.network.", 4, 1, wide);
  w.add_layer("g_s.network.5", 3 * 64, wide, {1, 1});
  return w;
}

}  // namespace codec_cases
