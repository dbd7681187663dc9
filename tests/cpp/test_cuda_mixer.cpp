// SPDX-License-Identifier: MIT
//
// The entropy model's CUDA kernels, executed on the host (cuda_host/cuda_runtime.h), predict what
// Mixer predicts, to the bit: whole sequences of groups, tiles of any size side by side, whatever
// the order of threads. Memory starts as not-a-number, so rows between tiles are that throughout.

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "codec_cases.h"
#include "common/cuda_graph.h"
#include "common/float_mode.h"
#include "cuda_testing.h"
#include "entropy/symbols.h"
#include "mixer/device_mixer.h"

using namespace groupedmixer;
using codec_cases::make_weights;
using codec_cases::Weights;
using cuda_host::Order;
using mixer::DeviceMixer;
using mixer::DeviceTiles;
using mixer::Mixer;
using mixer::MixerSizes;
using mixer::TileState;

namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
const AlignedVector kThresholds = {-1.0f, 0.4f, -0.3f, 0.9f, 0.1f};
const std::string kPrefix = "latent_codec.context.";

using Sides = std::vector<std::pair<int, int>>;

// Tiles next to each other in a latent, with a gap ahead of each.
struct Latent {
  TileSet set;
  int64_t height = 0, width = 0;
  std::vector<int64_t> left;
  std::vector<int32_t> position;
  std::vector<float> psi;  // [height, width, d]
  std::vector<float> level;

  Latent(Random& random, const MixerSizes& sizes, const Sides& sides) {
    for (const auto& [rows, columns] : sides) {
      set.add(rows, columns);
      left.push_back(width + 1);
      width = left.back() + columns * sizes.patch_w;
      height = std::max(height, rows * sizes.patch_h);
    }
    position.assign(static_cast<size_t>(set.tokens), -1);
    for (int32_t tile = 0; tile < set.count; ++tile) {
      const TileSpan span = set.tiles[tile];
      for (int32_t token = 0; token < span.tokens(); ++token) {
        const int64_t y = token / span.width * sizes.patch_h;
        const int64_t x = left[static_cast<size_t>(tile)] + token % span.width * sizes.patch_w;
        position[static_cast<size_t>(span.first + token)] = static_cast<int32_t>(y * width + x);
      }
    }
    psi = noise(random, height * width * sizes.width, 1.0f);
    level = noise(random, sizes.width, 1.0f);
  }
};

// The CPU's side.
struct Reference {
  Arena arena;
  Team team{1};
  Member member{team, 0};
  std::vector<std::vector<float>> psi;
  std::vector<TileState> tiles;

  Reference(const Mixer& mixer, const Latent& latent) {
    const MixerSizes& sizes = mixer.sizes();
    for (int32_t i = 0; i < latent.set.count; ++i) {
      const TileSpan span = latent.set.tiles[i];
      tiles.push_back(mixer.make_tile(arena, span.height, span.width, 1));
      std::vector<float> own;
      for (int64_t y = 0; y < span.height * sizes.patch_h; ++y) {
        const float* row = latent.psi.data() +
                           (y * latent.width + latent.left[static_cast<size_t>(i)]) * sizes.width;
        own.insert(own.end(), row, row + span.width * sizes.patch_w * sizes.width);
      }
      psi.push_back(std::move(own));
    }
    for (size_t i = 0; i < tiles.size(); ++i) {
      tiles[i].psi = psi[i].data();
      tiles[i].level = latent.level.data();
    }
  }
};

// The state's arrays, each sized to the byte.
struct Arrays {
  Device<float> y_hat, mean, uncorrected, embedding_bias, x, qkv, attended, hidden;
  Device<uint16_t> cache;

  Arrays(const MixerSizes& s, DeviceTiles& state)
      : y_hat(floats(s.groups() * state.set.tokens * s.channels)),
        mean(floats(state.set.tokens * s.channels)),
        uncorrected(floats(s.lrp ? state.set.tokens * s.channels : 0)),
        embedding_bias(floats(s.groups() * s.width)),
        x(floats(state.set.tokens * s.width)),
        qkv(floats(state.set.tokens * 3 * s.width)),
        attended(floats(state.set.tokens * s.width)),
        hidden(floats(state.set.tokens * 4 * s.width)),
        cache(std::vector<uint16_t>(static_cast<size_t>(s.layers * state.cache_size), 0xffff)) {
    state.y_hat = y_hat.data();
    state.mean = mean.data();
    state.uncorrected = uncorrected.data();
    state.embedding_bias = embedding_bias.data();
    state.x = x.data();
    state.qkv = qkv.data();
    state.attended = attended.data();
    state.hidden = hidden.data();
    state.cache = cache.data();
  }

 private:
  static std::vector<float> floats(int64_t count) {
    return std::vector<float>(static_cast<size_t>(count), kNan);
  }
};

bool same(const void* a, const void* b, int64_t count, size_t size) {
  return std::memcmp(a, b, static_cast<size_t>(count) * size) == 0;
}

// What happens on the way.
struct Spoiled {
  int64_t step = -1;  // whose y_hat of this tile, once decoded, is not a number
  size_t tile = 0;
};

// Predicts and decodes all groups, with the state's arrays in a layout or apart. Returns the words
// of the tiles' failures.
std::vector<uint32_t> check_sequence(Random& random, const Mixer& mixer, const Sides& sides,
                                     const Spoiled& spoiled, bool in_layout) {
  const ScopedFloatMode mode;
  const MixerSizes& sizes = mixer.sizes();
  const int64_t c = sizes.channels;
  const Latent latent(random, sizes, sides);
  const int64_t tokens = latent.set.tokens;
  Reference reference(mixer, latent);

  const DeviceMixer device(mixer, kThresholds);
  DeviceLayout measure;
  device.make_tiles(latent.set, measure);
  const DeviceMemory memory(measure.peak());
  std::memset(memory.data(), 0xff, memory.size());
  DeviceLayout layout(memory.data());
  DeviceTiles state = device.make_tiles(latent.set, layout);
  std::optional<Arrays> arrays;
  if (!in_layout) arrays.emplace(sizes, state);
  const Device<int32_t> position(latent.position);
  const Device<float> psi(latent.psi), level(latent.level);
  const Device<uint32_t> failures(std::vector<uint32_t>(sides.size(), kNoTileFailure));
  const Device<uint8_t> indexes(static_cast<size_t>(tokens * c));
  state.position = position.data();
  state.latent_width = latent.width;
  state.psi = psi.data();
  state.level = level.data();
  state.failures = failures.data();

  const CudaStream stream;
  const auto run = [&](size_t nodes, const auto& enqueue) {
    const CudaGraph graph = CudaGraph::record(stream.get(), enqueue);
    CHECK(graph.nodes() == nodes);
    graph.launch(stream.get());
    check_cuda(cudaStreamSynchronize(stream.get()), "cudaStreamSynchronize");
  };
  run(1, [&] { device.prepare(state, stream.get()); });
  for (int64_t step = 0; step < sizes.groups(); ++step) {
    run(static_cast<size_t>(2 + 7 * sizes.layers),
        [&] { device.predict(state, step, indexes.data(), stream.get()); });
    for (size_t i = 0; i < sides.size(); ++i) {
      TileState& tile = reference.tiles[i];
      const int64_t first = latent.set.tiles[i].first * c, count = tile.tokens * c;
      mixer.predict(reference.member, tile, step);
      std::vector<uint8_t> expected(static_cast<size_t>(count));
      entropy::scale_indexes({tile.raw_scale, tile.mean, kThresholds.data(), expected.data(), count,
                              static_cast<int64_t>(kThresholds.size())});
      CHECK(same(state.mean + first, tile.mean, count, sizeof(float)));
      CHECK(same(indexes.data() + first, expected.data(), count, 1));

      std::vector<float> y_hat = noise(random, count, 2.0f);
      if (step == spoiled.step && i == spoiled.tile) y_hat.back() = kNan;
      const auto bytes = y_hat.size() * sizeof(float);
      std::memcpy(tile.y_hat + step * count, y_hat.data(), bytes);
      std::memcpy(device.decoded(state, step) + first, y_hat.data(), bytes);
    }
    run(sizes.lrp ? 1 : 0, [&] { device.correct(state, step, stream.get()); });
    for (size_t i = 0; i < sides.size(); ++i) {
      TileState& tile = reference.tiles[i];
      const int64_t first = latent.set.tiles[i].first * c, count = tile.tokens * c;
      mixer.correct(reference.member, tile, step);
      CHECK(same(state.y_hat + step * tokens * c + first, tile.y_hat + step * count, count,
                 sizeof(float)));
    }
  }
  return {failures.data(), failures.data() + sides.size()};
}

struct Case {
  int64_t slices, patch_h, patch_w;
  bool lrp;
  int64_t layers, width, channels;
  Sides sides;
};

codec::LatentSizes sizes_of(const Case& c) {
  codec::LatentSizes sizes =
      codec_cases::sizes_of(c.slices, c.patch_h, c.patch_w, c.lrp, c.layers, c.width);
  sizes.mixer.channels = c.channels;
  return sizes;
}

void test_sequences(Random& random, bool in_layout) {
  const Case cases[] = {
      {1, 1, 1, false, 1, 32, 6, {{1, 1}}},
      {3, 2, 2, true, 2, 32, 2, {{1, 1}, {3, 5}, {9, 17}}},
      {3, 1, 2, false, 1, 32, 33, {{9, 17}, {1, 1}, {4, 4}}},  // more than a panel
      {1, 1, 2, true, 1, 128, 40, {{3, 5}, {5, 9}}},
      {1, 1, 2, true, 1, 256, 5, {{1, 1}, {3, 2}}},
      {1, 1, 1, true, 1, 384, 140, {{2, 2}}},  // a correction of several blocks a row
  };
  for (const Case& c : cases) {
    const codec::LatentSizes sizes = sizes_of(c);
    const Weights weights = make_weights(sizes);
    const Mixer mixer(weights.map, kPrefix, sizes.mixer);
    const std::vector<uint32_t> failures = check_sequence(random, mixer, c.sides, {}, in_layout);
    CHECK(failures == std::vector<uint32_t>(c.sides.size(), kNoTileFailure));
  }
}

// Raw scales that are thresholds, to the bit: all outputs of the head are its biases.
void test_thresholds(Random& random, bool in_layout) {
  const Case c = {1, 1, 1, false, 1, 32, 5, {{2, 2}}};
  const codec::LatentSizes sizes = sizes_of(c);
  Weights weights = make_weights(sizes);
  const std::vector<float> head(static_cast<size_t>(2 * c.channels * c.width));
  std::vector<float> bias(static_cast<size_t>(c.channels));
  bias.insert(bias.end(), kThresholds.begin(), kThresholds.end());
  weights.map.add(kPrefix + "head", {1, 2 * c.channels, c.width}, head.data());
  weights.map.add(kPrefix + "head_bias", {1, 2 * c.channels}, bias.data());
  check_sequence(random, Mixer(weights.map, kPrefix, sizes.mixer), c.sides, {}, in_layout);
}

void test_failures(Random& random, bool in_layout) {
  const Case c = {1, 2, 2, false, 1, 32, 3, {{3, 5}, {2, 2}, {1, 7}}};
  const codec::LatentSizes sizes = sizes_of(c);
  const Weights weights = make_weights(sizes);
  {
    // A number that is none reaches the means of its tile in the steps behind it.
    const Mixer mixer(weights.map, kPrefix, sizes.mixer);
    const std::vector<uint32_t> failures =
        check_sequence(random, mixer, c.sides, {1, 1}, in_layout);
    CHECK(failures ==
          std::vector<uint32_t>({kNoTileFailure, prediction_failure(2), kNoTileFailure}));
  }
  const std::pair<int64_t, float> outputs[] = {
      {c.channels - 1, kNan},                                 // a mean
      {c.channels, std::numeric_limits<float>::infinity()}};  // a raw scale
  for (const auto& [output, value] : outputs) {
    std::vector<float> bias(static_cast<size_t>(2 * c.channels));
    bias[static_cast<size_t>(output)] = value;
    WeightMap map = weights.map;
    map.add(kPrefix + "head_bias", {1, 2 * c.channels}, bias.data());
    const Mixer mixer(map, kPrefix, sizes.mixer);
    const std::vector<uint32_t> failures = check_sequence(random, mixer, c.sides, {}, in_layout);
    CHECK(failures == std::vector<uint32_t>(c.sides.size(), prediction_failure(0)));
  }
}

}  // namespace

int main() {
  for (const Order order : {Order::kForward, Order::kReverse}) {
    cuda_host::set_order(order);
    Random random(1);
    test_sequences(random, order == Order::kForward);
    test_thresholds(random, order == Order::kForward);
    test_failures(random, order == Order::kForward);
  }
  std::puts("passed");
}
