// SPDX-License-Identifier: MIT
//
// h_a and h_s (docs/numerics.md, section 6; docs/bitstream.md, section 4).
//
// All transforms are run by all members of a team, on scratch memory that the caller takes for them
// before the team starts: scratch_size() floats, for a team of at most `members`. run() returns
// when all members are done. Constructors copy what they need of the weights.

#pragma once

#include <cstdint>
#include <string>

#include "common/team.h"
#include "common/watch.h"
#include "common/weight_map.h"
#include "strict/packed.h"
#include "transform/layers.h"

namespace groupedmixer::transform {

constexpr int64_t kHyperStride = 4;  // latent positions to a hyper latent position

// Scaled latent to hyper latent:
//
//   y --compand--> pad to a multiple of 4 --> 3x3 --> 3x3 / 2 --> 3x3 / 2 --> z
//
// Works on strips of rows, which overlap by what the windows see.
class HyperAnalysis {
 public:
  // `strip` rows of z are computed at a time; 0: as many as a bound on memory allows.
  HyperAnalysis(const WeightMap& weights, const std::string& prefix, int64_t latent_channels,
                int64_t hyper_width, int64_t hyper_channels, int64_t strip = 0);

  // Some rows of z.
  struct Rows {
    int64_t begin, end;
  };

  // How many rows of a latent, from its first one, the rows of z before `end` depend on; those from
  // `begin` on depend on none before 4 * begin - 4.
  static int64_t depth(int64_t end, int64_t height);

  int64_t scratch_size(int members, int64_t height, int64_t width) const;

  // Makes some rows of z.
  void run(const Member& member,
           const float* scaled,  // [.., width, M], from row `first` on
           int64_t first, int64_t height, int64_t width, const Rows& rows_of_z,
           float* z,  // [rows_of_z.end - rows_of_z.begin, ceil(width / 4), N_z]
           float* scratch, Watch& watch) const;

  // Named by the scale of what they read.
  const strict::PackedLinear& full() const { return full_; }
  const strict::PackedLinear& half() const { return half_; }
  const strict::PackedLinear& quarter() const { return quarter_; }

 private:
  struct Scratch;
  Scratch divide(int members, int64_t height, int64_t width) const;

  strict::PackedLinear full_, half_, quarter_;
  int64_t latent_channels_;
  int64_t hyper_width_;
  int64_t strip_;
};

// Hyper latent to the features of a region of the latent grid, the same as on the whole grid:
//
//   z_hat --> 3x3, shuffle 2 --> 3x3, shuffle 2 --> 1x1 --> psi
class HyperSynthesis {
 public:
  HyperSynthesis(const WeightMap& weights, const std::string& prefix, int64_t hyper_channels,
                 int64_t hyper_width, int64_t features);

  // How many rows of z_hat, from its first one, the features of the latent rows before `end` depend
  // on.
  static int64_t depth(int64_t end, int64_t hyper_height);

  int64_t scratch_size(int members, const Grid& region) const;

  void run(const Member& member,
           const float* z_hat,  // [hyper_height, hyper_width, N_z]
           int64_t hyper_height, int64_t hyper_width,
           const Grid& region,  // of latent positions, inside 4 x that of z_hat
           float* psi,          // [region.rows, region.columns, d]
           float* scratch) const;

  // Named by the scale of what they read, as above.
  const strict::PackedLinear& quarter() const { return quarter_; }
  const strict::PackedLinear& half() const { return half_; }
  const strict::PackedLinear& last() const { return last_; }

 private:
  struct Scratch;
  Scratch divide(int members, const Grid& region) const;

  strict::PackedLinear quarter_, half_, last_;
  int64_t hyper_channels_;
  int64_t hyper_width_;
};

}  // namespace groupedmixer::transform
