// SPDX-License-Identifier: MIT
//
// The coding loop of a GPU, executed on the host (cuda_host/cuda_runtime.h): its streams, latents,
// pixels and errors are those of the CPU's loop, whether its kernels are launched one by one or
// replayed as a graph, and whatever the order of threads.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "codec/device_coder.h"
#include "codec/image_coder.h"
#include "codec/latent_coder.h"
#include "codec_cases.h"
#include "cuda_host/injection.h"
#include "testing.h"

using namespace groupedmixer;
using namespace codec_cases;
using codec::CodedLatent;
using codec::DeviceCoder;
using codec::ImageCoder;
using codec::LatentCoder;
using codec::Settings;
using codec::StageTimes;
using codec::TileView;
using cuda_host::Order;

namespace {

// ---- both engines -------------------------------------------------------------------------------

struct Coded {
  CodedLatent latent;
  std::vector<float> y_hat;
};

struct Engines {
  Weights weights;
  LatentCoder cpu;
  ImageCoder pictures;
  DeviceCoder gpu;

  explicit Engines(const codec::LatentSizes& sizes)
      : weights(make_weights(sizes)),
        cpu(weights.map, sizes, make_tables(kTables), make_tables(kHyperChannels)),
        pictures(weights.map, kPatch, cpu),
        gpu(cpu, &pictures, 0) {}

  size_t plane(int64_t height, int64_t width) const {
    return static_cast<size_t>(height * width * cpu.sizes().latent_channels);
  }

  Coded encode_cpu(std::vector<float> y, int64_t height, int64_t width,
                   const Settings& settings) const {
    Coded coded{{}, std::vector<float>(y.size(), NAN)};
    StageTimes times;
    Watch watch;
    coded.latent = std::move(
        cpu.encode(y.data(), 1, height, width, {settings}, coded.y_hat.data(), times, watch)
            .front());
    return coded;
  }
  Coded encode_gpu(const std::vector<float>& y, int64_t height, int64_t width,
                   const Settings& settings) {
    Coded coded{{}, std::vector<float>(y.size(), NAN)};
    StageTimes times;
    coded.latent =
        gpu.encode(y.data(), height, width, settings, coded.y_hat.data(), times, nullptr);
    return coded;
  }
  std::vector<float> decode_cpu(const std::vector<TileView>& tiles, int64_t height, int64_t width,
                                const Settings& settings) const {
    std::vector<float> y_hat(plane(height, width), 0.0f);
    StageTimes times;
    Watch watch;
    cpu.decode({tiles}, height, width, {settings}, y_hat.data(), times, watch);
    return y_hat;
  }
  std::vector<float> decode_gpu(const std::vector<TileView>& tiles, int64_t height, int64_t width,
                                const Settings& settings) {
    std::vector<float> y_hat(plane(height, width), NAN);
    StageTimes times;
    gpu.decode(tiles, height, width, settings, y_hat.data(), times, nullptr);
    return y_hat;
  }
};

std::vector<TileView> views(const CodedLatent& latent) {
  std::vector<TileView> tiles;
  for (const codec::CodedTile& tile : latent.tiles) {
    tiles.push_back({tile.stream.data(), tile.stream.size(), tile.checksum, true});
  }
  return tiles;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

bool same_latents(const CodedLatent& a, const CodedLatent& b) {
  bool same = a.tiles.size() == b.tiles.size() && a.num_symbols == b.num_symbols &&
              a.num_coded == b.num_coded && a.num_escaped == b.num_escaped;
  for (size_t i = 0; same && i < a.tiles.size(); ++i) {
    same = a.tiles[i].stream == b.tiles[i].stream && a.tiles[i].checksum == b.tiles[i].checksum;
  }
  return same;
}

// What a call throws, as "type: message"; "" if it does not.
std::string error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const codec::TileError& error) {
    return std::string("TileError: ") + error.what();
  } catch (const codec::NonFiniteError& error) {
    return std::string("NonFiniteError: ") + error.what();
  } catch (const std::invalid_argument& error) {
    return std::string("invalid_argument: ") + error.what();
  } catch (const std::bad_alloc& error) {
    return std::string("bad_alloc: ") + error.what();
  } catch (const std::runtime_error& error) {
    return std::string("runtime_error: ") + error.what();
  }
  return "";
}

// ---- round trips --------------------------------------------------------------------------------

void check_latent(Engines& engines, Random& random, int64_t height, int64_t width,
                  const Settings& settings, bool as_graph) {
  const auto count = static_cast<int64_t>(engines.plane(height, width));
  const std::vector<float> y = noise(random, count, 2.0f);
  const Coded expected = engines.encode_cpu(y, height, width, settings);
  const Coded coded = engines.encode_gpu(y, height, width, settings);
  CHECK((engines.gpu.report().graph_nodes > 0) == as_graph);
  CHECK(same_latents(coded.latent, expected.latent));
  CHECK(same_bits(coded.y_hat, expected.y_hat));
  const std::vector<float> decoded =
      engines.decode_gpu(views(expected.latent), height, width, settings);
  CHECK((engines.gpu.report().graph_nodes > 0) == as_graph);
  CHECK(same_bits(decoded, expected.y_hat));
}

// Sizes of the group grid, so that no size is a multiple of anything; heads, segments and slices
// are those of the configurations, scaled down.
void test_latents() {
  struct Case {
    int64_t slices, patch_h, patch_w, rows, columns, tile;
    bool lrp;
    int64_t width, layers;
  };
  for (const Case& one :
       {Case{2, 2, 2, 3, 9, 64, true, 32, 2}, Case{1, 1, 1, 13, 3, 8, false, 64, 1},
        Case{3, 3, 1, 2, 17, 5, true, 32, 1}, Case{3, 1, 2, 4, 3, 4, false, 160, 1},
        Case{1, 5, 3, 2, 3, 64, true, 32, 1}}) {
    Engines engines(sizes_of(one.slices, one.patch_h, one.patch_w, one.lrp, one.layers, one.width));
    const int64_t height = one.rows * one.patch_h, width = one.columns * one.patch_w;
    const int64_t tile = std::max({one.tile, one.patch_h, one.patch_w});
    Random random(3);
    check_latent(engines, random, height, width, {777, 2, tile, 1}, false);
    check_latent(engines, random, height, width, {1792, 2, tile, 1}, true);
  }
}

// Graphs of several sizes live side by side, until one needs more memory.
void test_sizes_in_turn() {
  Engines engines(sizes_of(1, 1, 1, true, 1));
  Random random(4);
  const Settings settings{500, 1, 64, 1};
  check_latent(engines, random, 3, 4, settings, false);
  check_latent(engines, random, 2, 3, settings, false);
  check_latent(engines, random, 3, 4, settings, true);
  check_latent(engines, random, 2, 3, settings, true);
  check_latent(engines, random, 2, 3, {500, 0, 64, 1}, false);  // skips nothing
  const int64_t bytes = engines.gpu.report().scratch_bytes;
  check_latent(engines, random, 12, 10, settings, false);
  CHECK(engines.gpu.report().scratch_bytes > bytes);
  check_latent(engines, random, 2, 3, settings, true);
  for (int64_t size = 1; size <= 9; ++size) {  // twice as many shapes, and more than are kept
    check_latent(engines, random, 1, size, settings, false);
  }
  check_latent(engines, random, 3, 4, settings, false);
}

// More than go side by side.
void test_many_tiles() {
  Engines engines(sizes_of(1, 1, 1, false, 1));
  Random random(5);
  check_latent(engines, random, 5, 15, {300, 1, 1, 1}, false);
  check_latent(engines, random, 5, 15, {300, 1, 1, 1}, true);
}

void test_wanted_tiles() {
  Engines engines(sizes_of(2, 1, 1, true, 1));
  constexpr int64_t kHeight = 5, kWidth = 6;
  const Settings settings{300, 1, 2, 1};
  Random random(6);
  const std::vector<float> y =
      noise(random, static_cast<int64_t>(engines.plane(kHeight, kWidth)), 2.0f);
  const Coded coded = engines.encode_cpu(y, kHeight, kWidth, settings);
  for (const unsigned wanted : {0x1ffu, 0x1feu, 0x101u, 0x80u, 0u}) {
    std::vector<TileView> tiles = views(coded.latent);
    CHECK(tiles.size() == 9);
    for (size_t i = 0; i < tiles.size(); ++i) tiles[i].wanted = (wanted >> i & 1) != 0;
    for (int replay = 0; replay < 2; ++replay) {
      CHECK(same_bits(engines.decode_gpu(tiles, kHeight, kWidth, settings),
                      engines.decode_cpu(tiles, kHeight, kWidth, settings)));
    }
  }
}

// As many kernels a step as base may have: six blocks, no latent residual prediction.
void test_nodes() {
  const auto nodes = [](int64_t slices, bool encodes) {
    Engines engines(sizes_of(slices, 1, 1, false, 6));
    const Settings settings{500, 0, 64, 1};
    Random random(7);
    const std::vector<float> y = noise(random, static_cast<int64_t>(engines.plane(1, 1)), 1.0f);
    for (int i = 0; i < 2; ++i) {
      const Coded coded = engines.encode_gpu(y, 1, 1, settings);
      if (!encodes) engines.decode_gpu(views(coded.latent), 1, 1, settings);
    }
    return engines.gpu.report().graph_nodes;
  };
  const int64_t decode = nodes(3, false) - nodes(2, false);
  const int64_t encode = nodes(3, true) - nodes(2, true);
  std::printf("%lld nodes a step to decode, %lld to encode; %lld in all of three steps\n",
              static_cast<long long>(decode), static_cast<long long>(encode),
              static_cast<long long>(nodes(3, false)));
  CHECK(decode <= 45 && encode <= 45);
}

// ---- pictures -----------------------------------------------------------------------------------

void test_pictures() {
  Engines engines(sizes_of(2, 2, 2, true, 1));
  Random random(8);
  for (const auto& [height, width] : {std::pair<int64_t, int64_t>{1, 1}, {33, 70}}) {
    const Settings settings{1000, 0, 4, 1};
    for (int replay = 0; replay < 2; ++replay) {
      std::vector<uint8_t> rgb(static_cast<size_t>(height * width * 3));
      for (uint8_t& sample : rgb) sample = static_cast<uint8_t>(random() >> 9);
      const ImageCoder::Size latent = engines.pictures.latent_size(height, width);
      StageTimes times;
      Watch watch;
      Coded expected{{}, std::vector<float>(engines.plane(latent.height, latent.width), NAN)};
      expected.latent = engines.pictures.encode(rgb.data(), height, width, settings,
                                                expected.y_hat.data(), times, watch);
      Coded coded{{}, std::vector<float>(expected.y_hat.size(), NAN)};
      coded.latent = engines.gpu.encode_picture(rgb.data(), height, width, settings,
                                                coded.y_hat.data(), times, nullptr);
      CHECK(same_latents(coded.latent, expected.latent));
      CHECK(same_bits(coded.y_hat, expected.y_hat));
      const transform::PixelRegion whole{0, 0, height, width};
      const transform::PixelRegion part{height / 2, width / 3, height, width - width / 4};
      for (const transform::PixelRegion& region : {whole, part}) {
        for (const bool grey : {false, true}) {
          const auto count =
              static_cast<size_t>((region.bottom - region.top) * (region.right - region.left) * 3);
          std::vector<uint8_t> wanted(count), found(count, 77);
          engines.pictures.decode(views(expected.latent), height, width, settings, region, grey,
                                  wanted.data(), times, watch);
          engines.gpu.decode_picture(views(expected.latent), height, width, settings, region, grey,
                                     found.data(), times, nullptr);
          CHECK(engines.gpu.report().graph_nodes > 0 || replay == 0);
          CHECK(found == wanted);
        }
      }
    }
  }
}

// ---- errors -------------------------------------------------------------------------------------

// Streams that were tampered with are refused in the words of the CPU.
void test_tampering() {
  Engines engines(sizes_of(2, 2, 2, true, 1));
  constexpr int64_t kHeight = 4, kWidth = 2;
  Random random(5);
  const std::vector<float> y =
      noise(random, static_cast<int64_t>(engines.plane(kHeight, kWidth)), 3.0f);
  const Settings settings{500, 1, 2, 1};
  const Coded coded = engines.encode_cpu(y, kHeight, kWidth, settings);
  CHECK(coded.latent.tiles.size() == 2 && coded.latent.num_escaped > 0);
  for (int round = 0; round < 40; ++round) {
    const auto tile = static_cast<size_t>(round % 2);
    std::vector<uint8_t> stream = coded.latent.tiles[tile].stream;
    const auto at = static_cast<int64_t>(random() % stream.size());
    if (round % 5 == 0) {
      stream.resize(static_cast<size_t>(at));
    } else if (round % 5 == 1) {
      stream.insert(stream.begin() + at, static_cast<uint8_t>(random()));
    } else {
      stream[static_cast<size_t>(at)] ^= static_cast<uint8_t>(1u << random() % 8);
    }
    std::vector<TileView> tiles = views(coded.latent);
    tiles[tile].data = stream.data();
    tiles[tile].size = stream.size();
    if (round % 7 == 0) tiles[0].checksum ^= 1;
    const std::string expected =
        error_of([&] { engines.decode_cpu(tiles, kHeight, kWidth, settings); });
    const std::string found =
        error_of([&] { engines.decode_gpu(tiles, kHeight, kWidth, settings); });
    if (found != expected)
      std::fprintf(stderr, "CPU: %s\nGPU: %s\n", expected.c_str(), found.c_str());
    CHECK(found == expected);
  }
  CHECK(same_bits(engines.decode_gpu(views(coded.latent), kHeight, kWidth, settings), coded.y_hat));

  // Longer than any stream of its tile, so there is no room for it on the device.
  std::vector<uint8_t> stream = coded.latent.tiles[1].stream;
  stream.resize(100000);
  std::vector<TileView> tiles = views(coded.latent);
  tiles[1].data = stream.data();
  tiles[1].size = stream.size();
  CHECK(error_of([&] {
          engines.decode_gpu(tiles, kHeight, kWidth, settings);
        }).find("TileError: tile 1 ") == 0);
  tiles.pop_back();
  CHECK(error_of([&] { engines.decode_gpu(tiles, kHeight, kWidth, settings); }) ==
        "invalid_argument: tiles must be 2, got 1");
}

void test_non_finite() {
  constexpr int64_t kHeight = 4, kWidth = 6;
  const Settings settings{500, 1, 2, 1};
  Random random(9);
  Engines engines(sizes_of(3, 2, 2, false, 1));
  std::vector<float> y = noise(random, static_cast<int64_t>(engines.plane(kHeight, kWidth)), 1.0f);
  const Coded good = engines.encode_cpu(y, kHeight, kWidth, settings);
  for (const float wrong : {std::numeric_limits<float>::infinity(), NAN, 3e38f}) {
    std::vector<float> spoilt = y;
    spoilt[spoilt.size() / 2 + 1] = wrong;
    const std::string expected =
        error_of([&] { engines.encode_cpu(spoilt, kHeight, kWidth, settings); });
    CHECK(expected == error_of([&] { engines.encode_gpu(spoilt, kHeight, kWidth, settings); }));
    CHECK(expected.find("NonFiniteError") == 0);
  }
  CHECK(same_latents(engines.encode_gpu(y, kHeight, kWidth, settings).latent, good.latent));
}

void test_device_errors() {
  const codec::LatentSizes sizes = sizes_of(2, 2, 2, true, 1);
  const Weights weights = make_weights(sizes);
  const LatentCoder cpu(weights.map, sizes, make_tables(kTables), make_tables(kHyperChannels));
  const auto make = [&](int device) {
    return error_of([&] { const DeviceCoder coder(cpu, nullptr, device); });
  };
  CHECK(make(0).empty());
  CHECK(make(1) == "invalid_argument: device must be 0 .. 0, got 1");
  CHECK(make(-1) == "invalid_argument: device must be 0 .. 0, got -1");
  cuda_host::set_missing_device(cudaErrorNoDevice);
  CHECK(make(0) == "runtime_error: no GPU can be used: no CUDA-capable device is detected");
  cuda_host::set_missing_device(cudaErrorInsufficientDriver);
  CHECK(make(0) == "runtime_error: no GPU can be used: no NVIDIA driver is installed");
  cuda_host::set_missing_device(cudaSuccess);
  cuda_host::set_missing_code(true);
  CHECK(make(0) ==
        "runtime_error: this build of groupedmixer has no code for GPU 0, whose compute "
        "capability is 9.0; build it with TORCH_CUDA_ARCH_LIST=9.0");
  cuda_host::set_missing_code(false);

  const size_t before = cuda_host::allocated_bytes();
  cuda_host::fail_next_allocation_above(4096);
  CHECK(make(0).find("bad_alloc: out of memory on the GPU") == 0);
  CHECK(cuda_host::allocated_bytes() == before);

  Engines engines(sizes);
  Random random(10);
  const Settings settings{500, 1, 64, 1};
  check_latent(engines, random, 2, 2, settings, false);
  cuda_host::spoil_next_capture();
  const Coded coded = engines.encode_gpu(noise(random, 24, 1.0f), 2, 2, settings);
  CHECK(engines.gpu.report().graph_nodes == 0);  // it did without
  engines.decode_gpu(views(coded.latent), 2, 2, settings);
  CHECK(engines.gpu.report().graph_nodes > 0);
  const std::vector<float> y = noise(random, static_cast<int64_t>(engines.plane(8, 8)), 1.0f);
  cuda_host::fail_next_allocation_above(4096);
  CHECK(error_of([&] {
          engines.encode_gpu(y, 8, 8, settings);
        }).find("bad_alloc: out of memory on the GPU") == 0);
  check_latent(engines, random, 2, 2, settings, true);  // goes on with what there is
  check_latent(engines, random, 8, 8, settings, false);
  cuda_host::fail_next_launch(cudaErrorLaunchFailure);
  CHECK(error_of([&] { engines.encode_gpu(y, 8, 8, settings); }).find("runtime_error: ") == 0);
  check_latent(engines, random, 8, 8, settings, true);
  CHECK(error_of([&] {
          StageTimes times;
          uint8_t pixel[3] = {};
          DeviceCoder coder(cpu, nullptr, 0);
          coder.encode_picture(pixel, 1, 1, settings, nullptr, times, nullptr);
        }) == "invalid_argument: there are no transforms to code pixels with");
}

}  // namespace

int main() {
  for (const Order order : {Order::kReverse, Order::kForward}) {
    cuda_host::set_order(order);
    test_latents();
    test_many_tiles();
    test_pictures();
  }
  // What is about the host's part.
  test_sizes_in_turn();
  test_wanted_tiles();
  test_nodes();
  test_tampering();
  test_non_finite();
  test_device_errors();
  std::puts("passed");
}
