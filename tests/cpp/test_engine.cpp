// SPDX-License-Identifier: MIT
//
// The coding loop under sanitizers: round trips of odd sizes with teams of any size, streams that
// were tampered with, and the self-test that keeps inexact builds from coding. GROUPEDMIXER_ISA
// chooses the variant that codes. Sources: all of the core (setup.py, core_objects).

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

#include "codec/image_coder.h"
#include "codec/latent_coder.h"
#include "codec_cases.h"
#include "common/isa.h"
#include "strict/kernels.h"
#include "strict/self_test.h"
#include "testing.h"

namespace groupedmixer::strict {
GROUPEDMIXER_DECLARE_VARIANTS(Kernels, strict_kernels)
}  // namespace groupedmixer::strict

using namespace groupedmixer;
using namespace codec_cases;
using codec::CodedLatent;
using codec::LatentCoder;
using codec::Settings;
using codec::StageTimes;
using codec::TileView;
using strict::Kernels;

namespace {

int64_t below(Random& random, size_t limit) { return static_cast<int64_t>(random() % limit); }

// ---- round trips --------------------------------------------------------------------------------

struct Coded {
  CodedLatent latent;
  std::vector<float> y_hat;
};

Coded encode(const LatentCoder& coder, std::vector<float> y, int64_t height, int64_t width,
             const Settings& settings) {
  Coded coded;
  coded.y_hat.resize(y.size(), NAN);
  StageTimes times;
  Watch watch;
  coded.latent = std::move(
      coder.encode(y.data(), 1, height, width, {settings}, coded.y_hat.data(), times, watch)
          .front());
  return coded;
}

std::vector<TileView> views(const CodedLatent& latent) {
  std::vector<TileView> tiles;
  for (const codec::CodedTile& tile : latent.tiles) {
    tiles.push_back({tile.stream.data(), tile.stream.size(), tile.checksum, true});
  }
  return tiles;
}

std::vector<float> decode(const LatentCoder& coder, const std::vector<TileView>& tiles,
                          int64_t height, int64_t width, const Settings& settings) {
  std::vector<float> y_hat(static_cast<size_t>(height * width * coder.sizes().latent_channels),
                           NAN);
  StageTimes times;
  Watch watch;
  coder.decode({tiles}, height, width, {settings}, y_hat.data(), times, watch);
  return y_hat;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

bool same_streams(const CodedLatent& a, const CodedLatent& b) {
  bool same = a.tiles.size() == b.tiles.size();
  for (size_t i = 0; same && i < a.tiles.size(); ++i) {
    same = a.tiles[i].stream == b.tiles[i].stream && a.tiles[i].checksum == b.tiles[i].checksum;
  }
  return same;
}

void test_round_trips() {
  struct Case {
    int64_t slices, patch_h, patch_w, rows, columns;  // of the group grid
    int64_t tile;
    bool lrp;
  };
  for (const Case& one : {Case{2, 2, 2, 1, 1, 64, true}, Case{2, 2, 2, 3, 9, 64, true},
                          Case{1, 1, 1, 13, 3, 8, false}, Case{3, 3, 1, 2, 17, 5, true},
                          Case{6, 1, 2, 4, 3, 4, false}, Case{1, 9, 4, 2, 3, 64, true}}) {
    const codec::LatentSizes sizes = sizes_of(one.slices, one.patch_h, one.patch_w, one.lrp, 2);
    const Weights weights = make_weights(sizes);
    const LatentCoder coder(weights.map, sizes, make_tables(kTables), make_tables(kHyperChannels));
    const int64_t height = one.rows * one.patch_h, width = one.columns * one.patch_w;
    const int64_t tile = std::max({one.tile, one.patch_h, one.patch_w});
    Random random(3);
    const std::vector<float> y = noise(random, height * width * sizes.latent_channels, 2.0f);
    const Settings alone{777, 2, tile, 1};
    const Coded coded = encode(coder, y, height, width, alone);
    for (int threads = 1; threads <= 4; ++threads) {
      const Settings settings{777, 2, tile, threads};
      const Coded again = encode(coder, y, height, width, settings);
      CHECK(same_streams(again.latent, coded.latent) && same_bits(again.y_hat, coded.y_hat));
      CHECK(same_bits(decode(coder, views(coded.latent), height, width, settings), coded.y_hat));
    }
  }
}

struct CodedPicture {
  Coded latent;
  std::vector<uint8_t> rgb;  // decoded
};

// A picture by its parts, each on the whole of it.
CodedPicture code_at_once(const Weights& weights, const LatentCoder& coder,
                          const std::vector<uint8_t>& rgb, int64_t height, int64_t width,
                          const Settings& settings) {
  const codec::ImageCoder images(weights.map, kPatch, coder);
  const auto [rows, columns] = images.latent_size(height, width);
  const transform::PixelRegion all{0, 0, height, width};
  std::vector<float> y(static_cast<size_t>(rows * columns * kPatch.latent_channels));
  std::vector<float> scratch(
      static_cast<size_t>(std::max(images.analysis().scratch_size(1, rows, columns),
                                   images.synthesis().scratch_size(1, rows, columns, all))));
  CodedPicture coded;
  Watch watch;
  run_team(1, [&](const Member& member) {
    images.analysis().run(member, 1, rgb.data(), height, width, rows, columns, 0, rows,
                          {y.data(), 0}, scratch.data(), watch);
  });
  coded.latent = encode(coder, y, rows, columns, settings);
  const AlignedVector gains = coder.level_rows(settings.quality).inverse_gain;
  for (size_t i = 0; i < y.size(); ++i) y[i] = coded.latent.y_hat[i] * gains[i % gains.size()];
  coded.rgb.resize(rgb.size());
  run_team(1, [&](const Member& member) {
    images.synthesis().run(member, 1, {y.data(), 0}, rows, columns, all, 0, rows, false,
                           coded.rgb.data(), scratch.data(), watch);
  });
  return coded;
}

// The fewer threads, the more bands; strips and columns of the transforms are small too.
void test_pictures() {
  const codec::LatentSizes sizes = sizes_of(2, 2, 2, true, 1);
  const Weights weights = make_weights(sizes);
  const LatentCoder coder(weights.map, sizes, make_tables(kTables), make_tables(kHyperChannels));
  Random random(4);
  struct Case {
    int64_t height, width, tile, strip, columns;
  };
  for (const auto& [height, width, tile, strip, columns] :
       {Case{1, 1, 4, 0, 512}, {33, 150, 4, 3, 5}, {600, 20, 2, 1, 512}, {550, 300, 5, 4, 7}}) {
    const codec::ImageCoder images(weights.map, kPatch, coder, {strip, columns});
    std::vector<uint8_t> rgb(static_cast<size_t>(height * width * 3));
    for (uint8_t& sample : rgb) sample = static_cast<uint8_t>(random() >> 9);
    const CodedPicture wanted =
        code_at_once(weights, coder, rgb, height, width, {1000, 0, tile, 1});
    const CodedLatent& latent = wanted.latent.latent;
    const codec::ImageCoder::Size size = images.latent_size(height, width);
    for (int threads = 1; threads <= 3; ++threads) {
      const Settings settings{1000, 0, tile, threads};
      CHECK(height < 100 || threads > 1 ||
            coder.band_rows(size.height, size.width, settings) < size.height);
      StageTimes times;
      Watch watch;
      std::vector<float> y_hat(wanted.latent.y_hat.size(), NAN);
      const CodedLatent coded =
          images.encode(rgb.data(), height, width, settings, y_hat.data(), times, watch);
      CHECK(same_streams(coded, latent) && same_bits(y_hat, wanted.latent.y_hat));
      CHECK(coded.num_symbols == latent.num_symbols && coded.num_coded == latent.num_coded);
      CHECK(coded.num_escaped == latent.num_escaped);
      std::vector<uint8_t> out(rgb.size());
      images.decode(views(coded), height, width, settings, {0, 0, height, width}, false, out.data(),
                    times, watch);
      CHECK(out == wanted.rgb);
      const int64_t top = height / 2, left = width / 3;
      std::vector<uint8_t> part(static_cast<size_t>((height - top) * (width - left) * 3));
      images.decode(views(coded), height, width, settings, {top, left, height, width}, false,
                    part.data(), times, watch);
      for (int64_t i = top; i < height; ++i) {
        const auto row = static_cast<size_t>((width - left) * 3);
        CHECK(std::memcmp(part.data() + (i - top) * static_cast<int64_t>(row),
                          wanted.rgb.data() + (i * width + left) * 3, row) == 0);
      }
    }
  }
}

// ---- being watched ------------------------------------------------------------------------------

struct Enough {};

void test_watch() {
  const codec::LatentSizes sizes = sizes_of(2, 2, 2, true, 1);
  const Weights weights = make_weights(sizes);
  const LatentCoder coder(weights.map, sizes, make_tables(kTables), make_tables(kHyperChannels));
  const codec::ImageCoder images(weights.map, kPatch, coder);
  constexpr int64_t kHeight = 600, kWidth = 70, kTiles = 19 * 3;  // of 2 x 2
  std::vector<uint8_t> rgb(kHeight * kWidth * 3);
  Random random(6);
  for (uint8_t& sample : rgb) sample = static_cast<uint8_t>(random() >> 9);
  for (int threads = 1; threads <= 3; ++threads) {
    const Settings settings{1000, 0, 2, threads};
    for (const int64_t most : {int64_t{-1}, int64_t{0}, int64_t{20}, kTiles - 1, kTiles}) {
      std::vector<int64_t> told;
      const auto tell = [&](int64_t done, int64_t total) {
        CHECK(total == kTiles);
        CHECK(told.empty() ? done == 0 : done > told.back());
        told.push_back(done);
        if (most >= 0 && done >= most) throw Enough{};
      };
      Watch watch(tell, nullptr);
      StageTimes times;
      bool stopped = false;
      try {
        images.encode(rgb.data(), kHeight, kWidth, settings, nullptr, times, watch);
      } catch (const Stopped&) {
        stopped = true;
        try {
          watch.rethrow();
        } catch (const Enough&) {
        }
      }
      CHECK(stopped == (most >= 0) && watch.stopped() == stopped);
      CHECK(stopped || told.back() == kTiles);
    }
  }
}

// ---- streams that were tampered with ------------------------------------------------------------

// The checksum that a TileError found of this tile; -1 if it is about something else. (Of several
// tiles at fault, any may be reported: threads race.)
int64_t found_checksum(const std::string& message, size_t tile) {
  const std::string before = "its checksum is ";
  const size_t at = message.find(before);
  if (message.find("tile " + std::to_string(tile)) != 0 || at == std::string::npos) return -1;
  return std::atoll(message.c_str() + at + before.size());
}

// Every changed stream is an error. One that is a stream of something else decodes under the
// checksum of that; it has to have been written by somebody who computed it.
void test_tampering() {
  const codec::LatentSizes sizes = sizes_of(2, 2, 2, true, 1);
  const Weights weights = make_weights(sizes);
  const LatentCoder coder(weights.map, sizes, make_tables(kTables), make_tables(kHyperChannels));
  constexpr int64_t kHeight = 4, kWidth = 2;
  Random random(5);
  const std::vector<float> y = noise(random, kHeight * kWidth * sizes.latent_channels, 3.0f);
  const Settings settings{500, 1, 2, 1};
  const Coded coded = encode(coder, y, kHeight, kWidth, settings);
  CHECK(coded.latent.tiles.size() == 2 && coded.latent.num_escaped > 0);
  int repaired = 0;
  for (int round = 0; round < 300; ++round) {
    const auto tile = static_cast<size_t>(round % 2);
    std::vector<uint8_t> stream = coded.latent.tiles[tile].stream;
    const int64_t at = below(random, stream.size());
    if (round % 5 == 0) {
      stream.resize(static_cast<size_t>(at));
    } else if (round % 5 == 1) {
      stream.insert(stream.begin() + at, static_cast<uint8_t>(random()));
    } else {
      for (int flips = 0; flips < round % 5 - 1; ++flips) {
        stream[static_cast<size_t>(below(random, stream.size()))] ^=
            static_cast<uint8_t>(1 << below(random, 8));
      }
    }
    if (stream == coded.latent.tiles[tile].stream) continue;
    const Settings threads{500, 1, 2, 1 + round % 3};
    std::vector<TileView> tiles = views(coded.latent);
    // A copy of just this size, for reads beyond its end to be found.
    const std::vector<uint8_t> exact(stream.begin(), stream.end());
    tiles[tile].data = exact.data();
    tiles[tile].size = exact.size();
    int64_t found = -1;
    try {
      decode(coder, tiles, kHeight, kWidth, threads);
      CHECK(!"a changed stream decoded");
    } catch (const codec::TileError& error) {
      found = found_checksum(error.what(), tile);
    }
    if (found < 0) continue;
    tiles[tile].checksum = static_cast<uint32_t>(found);
    try {
      for (const float value : decode(coder, tiles, kHeight, kWidth, threads)) {
        CHECK(std::isfinite(value));
      }
      ++repaired;
    } catch (const codec::TileError& error) {
      CHECK(tile == 0);  // whose z all tiles depend on
      CHECK(std::string(error.what()).find("tile 1") == 0);
    }
  }
  std::printf("%d changed streams were those of other latents\n", repaired);
}

// ---- the self-test ------------------------------------------------------------------------------

Kernels of(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512) return strict::avx512::strict_kernels;
  if (isa == Isa::kAvx2) return strict::avx2::strict_kernels;
#endif
  CHECK(isa == Isa::kScalar);
  return strict::scalar::strict_kernels;
}

// Multiplications and additions in place of fused ones.
void split_linear(const strict::LinearParams& p) {
  strict::scalar::strict_kernels.linear(p);
  if (p.activation != strict::Activation::kNone) return;
  for (int64_t row = 0; row < p.rows; ++row) {
    float sum = p.bias[0];
    for (int64_t k = 0; k < p.depth; ++k) {
      const float product = p.x[row * p.x_stride + k] * p.weight[k * strict::kPanel];
      sum = sum + product;
    }
    p.out[row * p.out_stride] = sum;
  }
}

void split_depthwise(const strict::DepthwiseParams& p) {
  for (int64_t i = p.row_begin; i < p.row_end; ++i) {
    for (int64_t j = 0; j < p.width; ++j) {
      for (int64_t c = 0; c < p.channels; ++c) {
        float sum = p.bias[c];
        for (int64_t tap = 0; tap < 9; ++tap) {
          const int64_t row = i + tap / 3 - 1, column = j + tap % 3 - 1;
          const bool inside = row >= 0 && row < p.height && column >= 0 && column < p.width;
          const float x = inside ? p.x[(row * p.width + column) * p.channels + c] : 0.0f;
          const float product = x * p.weight[tap * p.channels + c];
          sum = sum + product;
        }
        p.out[(i * p.width + j) * p.channels + c] = sum;
      }
    }
  }
}

// An error of one unit in the last place of one number.
void nudged_window(const strict::WindowAttentionParams& p) {
  strict::scalar::strict_kernels.window_attention(p);
  p.out[0] = std::nextafter(p.out[0], 2.0f);
}
void nudged_append(const strict::AppendAttentionParams& p) {
  strict::scalar::strict_kernels.append_attention(p);
  if (p.step == p.capacity - 1) p.out[0] = std::nextafter(p.out[0], 2.0f);
}
void nudged_compand(const strict::MapParams& p) {
  strict::scalar::strict_kernels.compand(p);
  p.out[p.count - 1] = std::nextafter(p.out[p.count - 1], 2.0f);
}
void nudged_leaky_relu(const strict::MapParams& p) {
  strict::scalar::strict_kernels.leaky_relu(p);
  p.out[p.count - 1] = std::nextafter(p.out[p.count - 1], 2.0f);
}
void nudged_half_tanh(const strict::MapParams& p) {
  strict::scalar::strict_kernels.half_tanh(p);
  p.out[p.count - 1] = std::nextafter(p.out[p.count - 1], 2.0f);
}

// One wrong kernel is enough.
void test_self_test() {
  for (const Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512}) {
    if (isa_available(isa)) CHECK(strict::self_test(of(isa)) == strict::kSelfTestHash);
  }
  const auto fails = [](void (*spoil)(Kernels&)) {
    Kernels kernels = strict::scalar::strict_kernels;
    spoil(kernels);
    return strict::self_test(kernels) != strict::kSelfTestHash;
  };
  CHECK(!fails([](Kernels&) {}));
  CHECK(fails([](Kernels& k) { k.linear = split_linear; }));
  CHECK(fails([](Kernels& k) { k.depthwise3x3 = split_depthwise; }));
  CHECK(fails([](Kernels& k) { k.window_attention = nudged_window; }));
  CHECK(fails([](Kernels& k) { k.append_attention = nudged_append; }));
  CHECK(fails([](Kernels& k) { k.compand = nudged_compand; }));
  CHECK(fails([](Kernels& k) { k.leaky_relu = nudged_leaky_relu; }));
  CHECK(fails([](Kernels& k) { k.half_tanh = nudged_half_tanh; }));
}

}  // namespace

int main() {
  test_self_test();
  test_round_trips();
  test_pictures();
  test_watch();
  test_tampering();
  std::printf("passed\n");
  return 0;
}
