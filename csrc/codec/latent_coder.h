// SPDX-License-Identifier: MIT
//
// Latent to streams and back: the loop over groups, from end to end (docs/bitstream.md).
//
//   y --gain--> h_a --> z --round--> rANS(z) --> h_s --> psi
//                                                         |   for each tile, for each group g:
//   y_g - mean_g --round--> symbols --> rANS(y) <-- mean_g, scale index <-- Mixer::predict(g)
//
// Both directions run the same Mixer::predict. Tiles are independent of each other, so they are
// spread over threads, and threads that are left over work together on a tile; neither changes a
// byte. A coder is immutable and may be used by any number of threads.
//
// A latent need not be in memory as a whole: rows of tiles are coded a few at a time, in bands, of
// which each thread gets some tiles. Of the rest of a picture, there is z.

#pragma once

#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/aligned.h"
#include "common/arena.h"
#include "common/watch.h"
#include "common/weight_map.h"
#include "entropy/rans.h"
#include "entropy/tables.h"
#include "mixer/mixer.h"
#include "transform/hyper.h"

namespace groupedmixer::codec {

// The entropy model, or the latent, has left the finite numbers.
class NonFiniteError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A tile does not decode to what it was made from.
class TileError : public std::runtime_error {
 public:
  TileError(int64_t tile, const std::string& problem)
      : std::runtime_error("tile " + std::to_string(tile) +
                           " does not decode to the latent it was made from: " + problem) {}
};

// What is wrong, in words that all engines share.
std::string non_finite_y();
std::string non_finite_hyper_latent();
std::string non_finite_prediction(int64_t step);
std::string wrong_checksum(uint32_t found, uint32_t wanted);

struct LatentSizes {
  int64_t latent_channels;  // M
  int64_t hyper_width;
  int64_t hyper_channels;  // N_z
  mixer::MixerSizes mixer;
};

// What a stream's bytes depend on besides the latent and the weights, and the threads, on which
// they do not.
struct Settings {
  int64_t quality;     // 256 * quality, as files store it: 0 .. 7 * 256
  int64_t skip_below;  // groups of scales that code nothing
  int64_t tile;        // latents along a tile's side, before it is rounded down to whole patches
  int threads;
};

// Wall-clock seconds. Where several tiles are coded at once, the time of all is divided among the
// stages in the proportions of the threads' time.
struct StageTimes {
  double transform = 0, hyper = 0, entropy_model = 0, rans = 0;
};

struct CodedTile {
  std::vector<uint8_t> stream;  // z is in the first tile's
  uint32_t checksum;            // CRC-32 of the decoded groups, [G, h, w, M/k_c] float32, no -0
};

struct CodedLatent {
  std::vector<CodedTile> tiles;  // in raster order
  int64_t num_symbols = 0;       // of z and y
  int64_t num_coded = 0;         // those that were not skipped
  int64_t num_escaped = 0;       // those beyond their table
};

struct TileView {
  const uint8_t* data;
  size_t size;
  uint32_t checksum;
  bool wanted;  // else nothing of it is decoded but z, and its y_hat is 0
};

// Rows of the tables that are stored at whole quality levels.
struct LevelRows {
  AlignedVector gain, inverse_gain;              // [M]
  AlignedVector hyper_gain, hyper_inverse_gain;  // [N_z]
  AlignedVector embedding;                       // [d], e_level
};

// Where the rows of a latent are made when they are needed: returns rows [begin, end) in memory,
// [end - begin, width, M]. Later calls have larger `begin` and `end`. Rows that were there before
// are as they were left, and what is ahead of `begin` is not asked for again.
using RowSource = std::function<float*(int64_t begin, int64_t end)>;

// Where the rows of a latent go, band by band from the top. Bands without a wanted tile are left
// out.
struct RowTarget {
  std::function<float*(int64_t begin, int64_t end)> room;  // memory for a band
  std::function<void(int64_t begin, int64_t end)> ready;   // it holds the band
};

class LatentCoder {
 public:
  // Weights are named as in weights files. Throws std::invalid_argument.
  LatentCoder(const WeightMap& weights, const LatentSizes& sizes, entropy::Tables y_tables,
              entropy::Tables z_tables);

  const LatentSizes& sizes() const { return sizes_; }

  // What it codes with; an engine on another device takes it from here.
  const entropy::Tables& y_tables() const { return y_tables_; }
  const entropy::Tables& z_tables() const { return z_tables_; }
  const AlignedVector& thresholds() const { return thresholds_; }  // [y tables - 1]
  const AlignedVector& dead_zone() const { return dead_zone_; }    // [y tables]
  const AlignedVector& medians() const { return medians_; }        // [N_z]
  const transform::HyperAnalysis& hyper_analysis() const { return h_a_; }
  const transform::HyperSynthesis& hyper_synthesis() const { return h_s_; }
  const mixer::Mixer& mixer() const { return mixer_; }
  LevelRows level_rows(int64_t quality) const;  // at quality / 256

  // Throws std::invalid_argument where a latent of this size cannot be coded so.
  void check(int64_t height, int64_t width, const Settings& settings) const;

  // Tiles of a latent. Throws std::invalid_argument if height or width is no multiple of the patch.
  int64_t count_tiles(int64_t height, int64_t width, int64_t tile) const;

  // The tiles of a latent in raster order.
  std::vector<transform::Grid> tile_regions(int64_t height, int64_t width, int64_t tile) const;

  // Which tiles have a part in a region, which may reach beyond the latent.
  std::vector<bool> tiles_in(const transform::Grid& region, int64_t height, int64_t width,
                             int64_t tile) const;

  // Rows of a latent that are coded at a time, and how many RowSource is asked for at most.
  int64_t band_rows(int64_t height, int64_t width, const Settings& settings) const;
  int64_t source_rows(int64_t height, int64_t width, const Settings& settings) const;

  // Codes latents of one size. `y` is scaled by the gains in place; `y_hat` receives what the
  // decoder will see, gains still in, where it is not null. Throws NonFiniteError, and Stopped.
  std::vector<CodedLatent> encode(float* y,  // [batch, height, width, M]
                                  int64_t batch, int64_t height, int64_t width,
                                  const std::vector<Settings>& settings,  // [batch]
                                  float* y_hat,  // [batch, height, width, M]
                                  StageTimes& times, Watch& watch) const;

  // Codes a latent band by band.
  CodedLatent encode(const RowSource& y, int64_t height, int64_t width, const Settings& settings,
                     float* y_hat,  // [height, width, M], or null
                     StageTimes& times, Watch& watch) const;

  // Decodes latents of one size, gains still in. Throws TileError, and Stopped.
  void decode(const std::vector<std::vector<TileView>>& tiles,  // [batch][tiles]
              int64_t height, int64_t width,
              const std::vector<Settings>& settings,  // [batch]
              float* y_hat,                           // [batch, height, width, M]
              StageTimes& times, Watch& watch) const;

  // Decodes a latent band by band.
  void decode(const std::vector<TileView>& tiles, int64_t height, int64_t width,
              const Settings& settings, const RowTarget& y_hat, StageTimes& times,
              Watch& watch) const;

 private:
  struct Job;
  struct TileRun;
  class Encoding;
  class Decoding;

  int64_t hyper_size(int64_t height, int64_t width) const;  // of z
  void read_hyper(const int16_t* symbols, size_t count, int64_t quality, float* z_hat) const;
  std::vector<uint16_t> hyper_indexes(size_t count) const;
  std::vector<Job> make_jobs(int64_t height, int64_t width, const Settings& settings,
                             const float* z_hat, int64_t top, int64_t bottom) const;
  void run_jobs(std::vector<Job>& jobs, int threads, StageTimes& times, Watch& watch) const;
  StageTimes run_tile(Arena& arena, int members, Job& job, const std::function<void()>& pass) const;
  void push_tile(Job& job, const int16_t* symbols, const uint8_t* indexes, int64_t count) const;
  void encode_group(const Member& member, const Job& job, const TileRun& run, int64_t step) const;
  void decode_group(const Member& member, const Job& job, TileRun& run, int64_t step) const;
  void merge_groups(const Member& member, const Job& job, const mixer::TileState& tile) const;
  uint32_t checksum(const mixer::TileState& tile) const;

  LatentSizes sizes_;
  entropy::Tables y_tables_, z_tables_;
  AlignedVector gain_, shrinkage_;                 // [levels, M]; inverse gain = shrinkage / gain
  AlignedVector hyper_gain_, hyper_inverse_gain_;  // [levels, N_z]
  AlignedVector thresholds_;                       // [tables - 1]
  AlignedVector dead_zone_;                        // [tables]
  AlignedVector medians_;                          // [N_z]
  transform::HyperAnalysis h_a_;
  transform::HyperSynthesis h_s_;
  mixer::Mixer mixer_;
  mutable ArenaPool arenas_;
};

}  // namespace groupedmixer::codec
