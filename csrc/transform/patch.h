// SPDX-License-Identifier: MIT
//
// g_a and g_s of the `patch` transforms, pixels included (docs/numerics.md, section 7):
//
//             .-- unshuffle 16 --> 1x1 --------------------------------------------.
//   pixels ---|                                                                    + --> y
//             '-- unshuffle 8 --> 1x1, blocks --> unshuffle 2, 1x1, blocks --> 1x1 -'
//
//             .-- 1x1 --> shuffle 16 -----------------------------------------------------.
//   y_hat ----|                                                                           + -->
//   pixels
//             '-- compand --> 1x1, blocks --> 1x1, shuffle 2, blocks --> 1x1 --> shuffle 8 '
//
// Rows stream through (stream.h), wide pictures in bands of columns. Bands and regions are computed
// as if the picture ended a receptive field around them, which is the same: what is wrong at their
// borders is cut off. How to run a transform: see hyper.h; but a picture may go through in several
// runs, of teams of at most `members`, on the same scratch memory. Rows [from, to) of one run
// follow those of the run before.

#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "common/team.h"
#include "common/watch.h"
#include "common/weight_map.h"
#include "strict/packed.h"
#include "transform/blocks.h"
#include "transform/layers.h"
#include "transform/stream.h"

namespace groupedmixer::transform {

constexpr int64_t kLatentStride = 16;  // pixels to a latent position
constexpr int64_t kColours = 3;

struct PatchSizes {
  int64_t latent_channels;  // M
  int64_t wide, narrow;     // channels at 1/8 and at 1/16
  int64_t early, late;      // blocks at 1/8 and at 1/16
};

// How much is computed at a time, in latent positions. No choice changes a bit.
struct PatchTiling {
  int64_t strip = 0;   // rows; 0: as many as a bound on memory allows
  int64_t band = 512;  // columns, without the receptive field
};

// Latent rows from `first` on, those that are in memory.
template <typename Float>
struct LatentRows {
  Float* data;  // [.., latent width, M]
  int64_t first;
};

class PatchAnalysis {
 public:
  PatchAnalysis(const WeightMap& weights, const std::string& prefix, const PatchSizes& sizes,
                const PatchTiling& tiling = {});

  // Of a picture of this size in latent positions.
  int64_t scratch_size(int members, int64_t latent_height, int64_t latent_width) const;

  // Rows that a run may begin behind those it is to make; the next one goes on with them.
  int64_t rows_ahead(int members, int64_t latent_height, int64_t latent_width) const;

  // Makes rows [from, to).
  void run(const Member& member, int members,
           const uint8_t* rgb,  // [height, width, 3]
           int64_t height, int64_t width, int64_t latent_height, int64_t latent_width, int64_t from,
           int64_t to, const LatentRows<float>& y, float* scratch, Watch& watch) const;

  const strict::PackedLinear& linear() const { return linear_; }
  const strict::PackedLinear& first() const { return first_; }  // at 1/8
  const strict::PackedLinear& join() const { return join_; }    // from 1/8 to 1/16
  const strict::PackedLinear& last() const { return last_; }    // at 1/16
  const BlockStack& early() const { return early_; }
  const BlockStack& late() const { return late_; }

 private:
  struct Pass;
  template <typename Visit>
  void for_streams(int members, int64_t latent_height, int64_t latent_width,
                   const Visit& visit) const;
  int64_t member_size(int64_t latent_height, int64_t latent_width) const;

  PatchTiling tiling_;
  strict::PackedLinear linear_, first_, join_, last_;
  BlockStack early_, late_;
  std::array<float, 256> samples_;
};

// Pixels top .. bottom - 1 and left .. right - 1 of a picture.
struct PixelRegion {
  int64_t top, left, bottom, right;
};

class PatchSynthesis {
 public:
  PatchSynthesis(const WeightMap& weights, const std::string& prefix, const PatchSizes& sizes,
                 const PatchTiling& tiling = {});

  // Of a region of a picture of this size in latent positions.
  int64_t scratch_size(int members, int64_t latent_height, int64_t latent_width,
                       const PixelRegion& region) const;

  // The latent rows that a region depends on.
  struct Rows {
    int64_t begin, end;
  };
  Rows rows_of(const PixelRegion& region, int64_t latent_height) const;

  // Rows before `to` that the run behind may read again.
  int64_t rows_behind(int members, int64_t latent_height, int64_t latent_width,
                      const PixelRegion& region) const;

  // Takes rows [from, to) of rows_of(region), and makes the pixels that depend on nothing behind
  // them; all that are left, once it has all rows.
  void run(const Member& member, int members,
           const LatentRows<const float>& y_hat,  // without gains
           int64_t latent_height, int64_t latent_width, const PixelRegion& region, int64_t from,
           int64_t to,
           bool grey,     // all samples of a pixel are the mean of its colours
           uint8_t* rgb,  // [bottom - top, right - left, 3]
           float* scratch, Watch& watch) const;

  // Outputs of linear() are [2, 2, 8, 8, 3], those of last() [8, 8, 3], those of split()
  // [2, 2, wide].
  const strict::PackedLinear& linear() const { return linear_; }
  const strict::PackedLinear& last() const { return last_; }    // at 1/8
  const strict::PackedLinear& split() const { return split_; }  // from 1/16 to 1/8
  const strict::PackedLinear& first() const { return first_; }  // at 1/16
  const BlockStack& late() const { return late_; }
  const BlockStack& early() const { return early_; }

 private:
  struct Pass;
  template <typename Visit>
  void for_streams(int members, int64_t latent_height, int64_t latent_width,
                   const PixelRegion& region, const Visit& visit) const;
  int64_t member_size(int64_t latent_height, int64_t latent_width, const PixelRegion& region) const;

  PatchTiling tiling_;
  strict::PackedLinear linear_, first_, split_, last_;
  BlockStack late_, early_;
};

}  // namespace groupedmixer::transform
