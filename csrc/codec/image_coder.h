// SPDX-License-Identifier: MIT
//
// Pixels to streams and back with the `patch` transforms around a LatentCoder: no number on the way
// depends on the machine, so neither do the bytes of the encoder nor the pixels of the decoder.
//
// Of the latent, there are some rows of tiles in memory (latent_coder.h), and what the transforms
// see around them.

#pragma once

#include <cstdint>
#include <vector>

#include "codec/latent_coder.h"
#include "transform/patch.h"

namespace groupedmixer::codec {

class ImageCoder {
 public:
  // Throws std::invalid_argument. The coder has to outlive this.
  ImageCoder(const WeightMap& weights, const transform::PatchSizes& sizes,
             const LatentCoder& latent_coder, const transform::PatchTiling& tiling = {});

  // The latent grid of a picture: ceil(size / 16), rounded up to whole patches.
  struct Size {
    int64_t height, width;
  };
  Size latent_size(int64_t height, int64_t width) const;

  const LatentCoder& latent_coder() const { return latent_coder_; }
  const transform::PatchAnalysis& analysis() const { return g_a_; }
  const transform::PatchSynthesis& synthesis() const { return g_s_; }

  // Which tiles of a picture a region depends on. Throws std::invalid_argument where the region is
  // empty or not inside, or such a picture cannot be coded so.
  std::vector<bool> tiles_for(const transform::PixelRegion& region, int64_t height, int64_t width,
                              const Settings& settings) const;

  // `y_hat` receives what the decoder will see, gains still in; null: not wanted.
  CodedLatent encode(const uint8_t* rgb,  // [height, width, 3]
                     int64_t height, int64_t width, const Settings& settings,
                     float* y_hat,  // [latent height, latent width, M]
                     StageTimes& times, Watch& watch) const;

  // Decodes a region of a picture, and of its tiles only those that the region depends on.
  // `wanted` of the tiles is ignored.
  void decode(std::vector<TileView> tiles, int64_t height, int64_t width, const Settings& settings,
              const transform::PixelRegion& region, bool grey,
              uint8_t* rgb,  // [bottom - top, right - left, 3]
              StageTimes& times, Watch& watch) const;

 private:
  int64_t reach_;  // of g_s, in latent positions
  int64_t latent_channels_;
  transform::PatchAnalysis g_a_;
  transform::PatchSynthesis g_s_;
  const LatentCoder& latent_coder_;
  mutable ArenaPool arenas_;
};

}  // namespace groupedmixer::codec
