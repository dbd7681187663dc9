// SPDX-License-Identifier: MIT

#include "codec/image_coder.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <string>

#include "strict/packed.h"

namespace groupedmixer::codec {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kMaxSide = int64_t{1} << 28;  // pixels

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

ImageCoder::ImageCoder(const WeightMap& weights, const transform::PatchSizes& sizes,
                       const LatentCoder& latent_coder)
    // A block sees one pixel around it; those at 1/8 are half a latent position apart.
    : reach_(sizes.late + transform::ceil_div(sizes.early, 2)),
      latent_channels_(sizes.latent_channels),
      g_a_(weights, "g_a.", sizes),
      g_s_(weights, "g_s.", sizes),
      latent_coder_(latent_coder) {}

ImageCoder::Size ImageCoder::latent_size(int64_t height, int64_t width) const {
  if (std::min(height, width) < 1 || std::max(height, width) > kMaxSide) {
    throw std::invalid_argument("a picture must be 1 .. 2^28 pixels high and wide, got " +
                                std::to_string(width) + " x " + std::to_string(height));
  }
  const mixer::MixerSizes& sizes = latent_coder_.sizes().mixer;
  return {strict::round_up(transform::ceil_div(height, transform::kLatentStride), sizes.patch_h),
          strict::round_up(transform::ceil_div(width, transform::kLatentStride), sizes.patch_w)};
}

CodedLatent ImageCoder::encode(const uint8_t* rgb, int64_t height, int64_t width,
                               const Settings& settings, float* y_hat, StageTimes& times) const {
  const Size latent = latent_size(height, width);
  latent_coder_.check(latent.height, latent.width, settings);
  const auto threads = static_cast<int>(std::min<int64_t>(settings.threads, latent.height));
  const auto start = Clock::now();
  const ArenaPool::Lease arena(arenas_);
  float* y = arena->take<float>(latent.height * latent.width * latent_channels_);
  const size_t mark = arena->mark();
  float* scratch = arena->take<float>(g_a_.scratch_size(threads, latent.height, latent.width));
  run_team(threads, [&](const Member& member) {
    g_a_.run(member, rgb, height, width, latent.height, latent.width, y, scratch);
  });
  arena->release(mark);
  times.transform += seconds_since(start);
  std::vector<CodedLatent> coded =
      latent_coder_.encode(y, 1, latent.height, latent.width, {settings}, y_hat, times);
  return std::move(coded.front());
}

std::vector<bool> ImageCoder::tiles_for(const transform::PixelRegion& region, int64_t height,
                                        int64_t width, const Settings& settings) const {
  if (!(0 <= region.top && region.top < region.bottom && region.bottom <= height &&
        0 <= region.left && region.left < region.right && region.right <= width)) {
    throw std::invalid_argument("region must be part of the picture of " + std::to_string(width) +
                                " x " + std::to_string(height) + " pixels, and not empty");
  }
  const Size latent = latent_size(height, width);
  latent_coder_.check(latent.height, latent.width, settings);
  constexpr int64_t kStride = transform::kLatentStride;
  const int64_t top = region.top / kStride - reach_, left = region.left / kStride - reach_;
  const transform::Grid seen = {top, left,
                                transform::ceil_div(region.bottom, kStride) + reach_ - top,
                                transform::ceil_div(region.right, kStride) + reach_ - left};
  return latent_coder_.tiles_in(seen, latent.height, latent.width, settings.tile);
}

void ImageCoder::decode(std::vector<TileView> tiles, int64_t height, int64_t width,
                        const Settings& settings, const transform::PixelRegion& region, bool grey,
                        uint8_t* rgb, StageTimes& times) const {
  const std::vector<bool> wanted = tiles_for(region, height, width, settings);
  if (wanted.size() != tiles.size()) {
    throw std::invalid_argument("tiles must be " + std::to_string(wanted.size()) + ", got " +
                                std::to_string(tiles.size()));
  }
  for (size_t i = 0; i < tiles.size(); ++i) tiles[i].wanted = wanted[i];
  const Size latent = latent_size(height, width);
  const auto threads = static_cast<int>(std::min<int64_t>(settings.threads, latent.height));
  const ArenaPool::Lease arena(arenas_);
  float* y_hat = arena->take<float>(latent.height * latent.width * latent_channels_);
  latent_coder_.decode({std::move(tiles)}, latent.height, latent.width, {settings}, y_hat, times);

  const auto start = Clock::now();
  const AlignedVector gains = latent_coder_.level_rows(settings.quality).inverse_gain;
  float* scratch =
      arena->take<float>(g_s_.scratch_size(threads, latent.height, latent.width, region));
  run_team(threads, [&](const Member& member) {
    const Member::Range rows = member.share(latent.height);
    for (int64_t i = rows.begin * latent.width; i < rows.end * latent.width; ++i) {
      float* values = y_hat + i * latent_channels_;
      for (int64_t c = 0; c < latent_channels_; ++c) values[c] *= gains[static_cast<size_t>(c)];
    }
    member.barrier();
    g_s_.run(member, y_hat, latent.height, latent.width, region, grey, rgb, scratch);
  });
  times.transform += seconds_since(start);
}

}  // namespace groupedmixer::codec
