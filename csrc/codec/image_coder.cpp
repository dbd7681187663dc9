// SPDX-License-Identifier: MIT

#include "codec/image_coder.h"

#include <algorithm>
#include <chrono>
#include <cstring>
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

// Rows of a latent in memory that has room for some of them.
class RowWindow {
 public:
  RowWindow(Arena& arena, int64_t rows, int64_t row_size)
      : data_(arena.take<float>(rows * row_size)), row_size_(row_size) {}

  int64_t first() const { return first_; }
  float* row(int64_t row) const { return data_ + (row - first_) * row_size_; }

  // Begins with row `first` from now on, and keeps what it has of the rows before `end`.
  void slide(int64_t first, int64_t end) {
    if (first > first_ && end > first) {
      std::memmove(data_, row(first),
                   static_cast<size_t>((end - first) * row_size_) * sizeof(float));
    }
    first_ = first;
  }

 private:
  float* data_;
  int64_t row_size_;
  int64_t first_ = 0;
};

}  // namespace

ImageCoder::ImageCoder(const WeightMap& weights, const transform::PatchSizes& sizes,
                       const LatentCoder& latent_coder, const transform::PatchTiling& tiling)
    // A block sees one pixel around it; those at 1/8 are half a latent position apart.
    : reach_(sizes.late + transform::ceil_div(sizes.early, 2)),
      latent_channels_(sizes.latent_channels),
      g_a_(weights, "g_a.", sizes, tiling),
      g_s_(weights, "g_s.", sizes, tiling),
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
                               const Settings& settings, float* y_hat, StageTimes& times,
                               Watch& watch) const {
  const Size latent = latent_size(height, width);
  latent_coder_.check(latent.height, latent.width, settings);
  const auto threads = static_cast<int>(std::min<int64_t>(settings.threads, latent.height));
  const int64_t ahead = g_a_.rows_ahead(threads, latent.height, latent.width);
  const int64_t rows = latent_coder_.source_rows(latent.height, latent.width, settings) + ahead;
  const ArenaPool::Lease arena(arenas_);
  RowWindow y(*arena, std::min(rows, latent.height), latent.width * latent_channels_);
  float* scratch = arena->take<float>(g_a_.scratch_size(threads, latent.height, latent.width));
  int64_t made = 0;
  const auto source = [&](int64_t begin, int64_t end) {
    const auto start = Clock::now();
    y.slide(begin, std::min(made + ahead, latent.height));
    run_team(threads, [&](const Member& member) {
      g_a_.run(member, threads, rgb, height, width, latent.height, latent.width, made, end,
               {y.row(begin), begin}, scratch, watch);
    });
    made = end;
    times.transform += seconds_since(start);
    return y.row(begin);
  };
  return latent_coder_.encode(source, latent.height, latent.width, settings, y_hat, times, watch);
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
                        uint8_t* rgb, StageTimes& times, Watch& watch) const {
  const std::vector<bool> wanted = tiles_for(region, height, width, settings);
  if (wanted.size() != tiles.size()) {
    throw std::invalid_argument("tiles must be " + std::to_string(wanted.size()) + ", got " +
                                std::to_string(tiles.size()));
  }
  for (size_t i = 0; i < tiles.size(); ++i) tiles[i].wanted = wanted[i];
  const Size latent = latent_size(height, width);
  const auto threads = static_cast<int>(std::min<int64_t>(settings.threads, latent.height));
  const transform::PatchSynthesis::Rows rows = g_s_.rows_of(region, latent.height);
  const int64_t behind = g_s_.rows_behind(threads, latent.height, latent.width, region);
  const int64_t band = latent_coder_.band_rows(latent.height, latent.width, settings);
  const AlignedVector gains = latent_coder_.level_rows(settings.quality).inverse_gain;
  const ArenaPool::Lease arena(arenas_);
  RowWindow y_hat(*arena, std::min(band + behind, latent.height), latent.width * latent_channels_);
  float* scratch =
      arena->take<float>(g_s_.scratch_size(threads, latent.height, latent.width, region));
  int64_t taken = rows.begin;
  const auto room = [&](int64_t begin, int64_t) {
    if (taken == rows.begin) {
      y_hat.slide(begin, begin);  // which may be ahead of what is wanted
    } else {
      y_hat.slide(std::max(taken - behind, rows.begin), taken);
    }
    return y_hat.row(begin);
  };
  const auto ready = [&](int64_t begin, int64_t end) {
    const auto start = Clock::now();
    end = std::min(end, rows.end);
    begin = std::max(begin, rows.begin);
    run_team(threads, [&](const Member& member) {
      const Member::Range share = member.share(end - begin);
      float* values = y_hat.row(begin + share.begin);
      const int64_t positions = (share.end - share.begin) * latent.width;
      for (int64_t i = 0; i < positions; ++i, values += latent_channels_) {
        for (int64_t c = 0; c < latent_channels_; ++c) values[c] *= gains[static_cast<size_t>(c)];
      }
      member.barrier();
      g_s_.run(member, threads, {y_hat.row(y_hat.first()), y_hat.first()}, latent.height,
               latent.width, region, taken, end, grey, rgb, scratch, watch);
    });
    taken = end;
    times.transform += seconds_since(start);
  };
  latent_coder_.decode(tiles, latent.height, latent.width, settings, {room, ready}, times, watch);
}

}  // namespace groupedmixer::codec
