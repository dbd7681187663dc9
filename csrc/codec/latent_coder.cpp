// SPDX-License-Identifier: MIT

#include "codec/latent_coder.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <utility>

#include "common/crc32.h"
#include "common/float_mode.h"
#include "common/levels.h"
#include "entropy/stream_error.h"
#include "entropy/symbols.h"
#include "strict/math.h"

namespace groupedmixer::codec {
namespace {

// Tiles that are worked on at once may take this much memory, as long as it is enough for one.
constexpr int64_t kTileMemory = int64_t{1} << 30;

// Tiles of a band for each thread: at its end, threads wait for the slowest.
constexpr int64_t kTilesPerThread = 8;

// Latents along a tile's side, and along a picture's.
constexpr int64_t kMaxTile = 1024;
constexpr int64_t kMaxSide = int64_t{1} << 24;

constexpr float kMinSymbol = -32768.0f;
constexpr float kMaxSymbol = 32767.0f;

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

AlignedVector copied(const float* values, int64_t count) { return {values, values + count}; }

struct Pitch {
  int64_t rows, columns;
};

// Tiles are as large as `tile` allows and hold whole patches.
Pitch tile_pitch(const mixer::MixerSizes& sizes, int64_t tile) {
  return {tile - tile % sizes.patch_h, tile - tile % sizes.patch_w};
}

// Where a group's elements lie in a latent of [.., width, M] that begins with row `first`.
class GroupView {
 public:
  GroupView(const mixer::MixerSizes& sizes, int64_t step, const transform::Grid& region,
            int64_t first, int64_t latent_width, int64_t latent_channels)
      : patch_h_(sizes.patch_h),
        patch_w_(sizes.patch_w),
        width_(latent_width),
        channels_(latent_channels) {
    const mixer::Group& group = sizes.order[static_cast<size_t>(step)];
    top_ = region.top - first + group.row_phase;
    left_ = region.left + group.column_phase;
    channel_ = group.slice * sizes.channels;
  }

  // Of the M / k_c channels at a position of the group grid.
  int64_t offset(int64_t row, int64_t column) const {
    return ((top_ + row * patch_h_) * width_ + left_ + column * patch_w_) * channels_ + channel_;
  }

 private:
  int64_t patch_h_, patch_w_, width_, channels_, top_, left_, channel_;
};

void check_finite(uint32_t non_finite, int64_t step) {
  if (non_finite == 0) return;
  throw NonFiniteError((non_finite & entropy::kNonFiniteY) != 0 ? non_finite_y()
                                                                : non_finite_prediction(step));
}

// Rows of y, from its first one, that the features of the rows before `bottom` are made of.
int64_t source_end(int64_t bottom, int64_t height) {
  const int64_t hyper_height = transform::ceil_div(height, transform::kHyperStride);
  return transform::HyperAnalysis::depth(transform::HyperSynthesis::depth(bottom, hyper_height),
                                         height);
}

void require(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument(message);
}

// Sizes that the rest relies on; returned so that it can be called ahead of the members'
// constructors.
const LatentSizes& checked(const LatentSizes& sizes) {
  const mixer::MixerSizes& m = sizes.mixer;
  const auto positive = [](const char* name, int64_t value) {
    require(value >= 1, std::string(name) + " must be at least 1, got " + std::to_string(value));
  };
  positive("latent_channels", sizes.latent_channels);
  positive("hyper_width", sizes.hyper_width);
  positive("hyper_channels", sizes.hyper_channels);
  positive("slices", m.slices);
  positive("patch[0]", m.patch_h);
  positive("patch[1]", m.patch_w);
  positive("width", m.width);
  positive("layers", m.layers);
  require(sizes.latent_channels % m.slices == 0,
          "latent_channels must be a multiple of slices = " + std::to_string(m.slices) + ", got " +
              std::to_string(sizes.latent_channels));
  require(m.width % strict::kHeadDim == 0,
          "width must be a multiple of 32, got " + std::to_string(m.width));
  require(std::max(m.patch_h, m.patch_w) <= kMaxTile,
          "patch must be at most " + std::to_string(kMaxTile) + " either way");
  std::vector<std::array<int64_t, 3>> order, all;
  for (const mixer::Group& g : m.order) order.push_back({g.slice, g.row_phase, g.column_phase});
  for (int64_t s = 0; s < m.slices; ++s) {
    for (int64_t i = 0; i < m.patch_h; ++i) {
      for (int64_t j = 0; j < m.patch_w; ++j) all.push_back({s, i, j});
    }
  }
  std::sort(order.begin(), order.end());
  require(order == all, "order must be a permutation of the " + std::to_string(all.size()) +
                            " (slice, row phase, column phase) triples");
  return sizes;
}

AlignedVector level_row(const AlignedVector& table, int64_t count, int64_t quality) {
  AlignedVector row(static_cast<size_t>(count));
  interpolate_levels(table.data(), count, quality, row.data());
  return row;
}

}  // namespace

std::string non_finite_y() { return "y must be finite, got NaN or infinity"; }

std::string non_finite_hyper_latent() {
  return "the hyper latent is not finite: y or the weights are NaN or infinity";
}

std::string non_finite_prediction(int64_t step) {
  return "the entropy model gives NaN or infinity at group " + std::to_string(step);
}

std::string wrong_checksum(uint32_t found, uint32_t wanted) {
  return "its checksum is " + std::to_string(found) + ", it must be " + std::to_string(wanted);
}

// A tile to code, and what becomes of it.
struct LatentCoder::Job {
  int64_t item;            // of the batch
  int64_t index;           // of the tile in its latent
  transform::Grid region;  // of the latent
  int64_t height, width;   // of the latent
  const float* z_hat;      // [hyper height, hyper width, N_z]
  const Settings* settings;
  const float* y;                             // [.., width, M], gains in; null: decode
  int64_t y_first;                            // row of the latent where y begins
  float* y_hat;                               // [.., width, M], or null
  int64_t y_hat_first;                        // row of the latent where y_hat begins
  TileView data;                              // to decode
  entropy::Encoder encoder;                   // has z already, if it is the first tile
  bool held;                                  // to be encoded when z is known
  std::vector<int16_t> symbols;               // where it is held
  std::vector<uint8_t> indexes;               // where it is held
  std::unique_ptr<entropy::Decoder> decoder;  // of the first tile; has given z already
  std::vector<uint8_t> stream;                // encoded
  int64_t num_coded, num_escaped;             // of the stream
  uint32_t checksum;                          // found when encoding, wanted when decoding
};

// What the members of a team share while they code a tile.
struct LatentCoder::TileRun {
  mixer::TileState tile;
  Clock::time_point start;
  StageTimes times;  // member 0's
  float* y_group;    // [tokens, C]
  int16_t* symbols;  // [G, tokens, C]
  uint8_t* indexes;  // [G, tokens, C]
};

LatentCoder::LatentCoder(const WeightMap& weights, const LatentSizes& sizes,
                         entropy::Tables y_tables, entropy::Tables z_tables)
    : sizes_(checked(sizes)),
      y_tables_(std::move(y_tables)),
      z_tables_(std::move(z_tables)),
      h_a_(weights, "latent_codec.h_a.layers.", sizes.latent_channels, sizes.hyper_width,
           sizes.hyper_channels),
      h_s_(weights, "latent_codec.h_s.layers.", sizes.hyper_channels, sizes.hyper_width,
           sizes.mixer.width),
      mixer_(weights, "latent_codec.context.", sizes.mixer) {
  const int64_t m = sizes.latent_channels, n = sizes.hyper_channels;
  const std::string prefix = "latent_codec.";
  gain_ = copied(weights.get(prefix + "gain", {kLevels, m}), kLevels * m);
  for (const float gain : gain_) {
    require(gain > 0, "gain must be positive, got " + std::to_string(gain));
  }
  shrinkage_ = copied(weights.get(prefix + "shrinkage", {kLevels, m}), kLevels * m);
  hyper_gain_ = copied(weights.get(prefix + "hyper_gain", {kLevels, n}), kLevels * n);
  hyper_inverse_gain_ =
      copied(weights.get(prefix + "hyper_inverse_gain", {kLevels, n}), kLevels * n);
  medians_ = copied(weights.get(prefix + "z_medians", {n}), n);
  const int64_t thresholds = y_tables_.size() - 1;
  require(thresholds <= entropy::kMaxThresholds, "y_tables must be at most " +
                                                     std::to_string(entropy::kMaxThresholds + 1) +
                                                     ", got " + std::to_string(y_tables_.size()));
  thresholds_ = copied(weights.get(prefix + "thresholds", {thresholds}), thresholds);
  dead_zone_ = copied(weights.get(prefix + "dead_zone", {thresholds + 1}), thresholds + 1);
  require(z_tables_.size() == n, "z_tables must be one a channel of z, " + std::to_string(n) +
                                     ", got " + std::to_string(z_tables_.size()));
}

void LatentCoder::check(int64_t height, int64_t width, const Settings& settings) const {
  const auto text = [](int64_t value) { return std::to_string(value); };
  require(settings.quality >= 0 && settings.quality <= (kLevels - 1) * kQualitySteps,
          "quality must be 0 .. " + text((kLevels - 1) * kQualitySteps) + ", got " +
              text(settings.quality));
  require(
      settings.skip_below >= 0 && settings.skip_below <= y_tables_.size(),
      "skip_below must be 0 .. " + text(y_tables_.size()) + ", got " + text(settings.skip_below));
  require(settings.threads >= 1, "threads must be at least 1, got " + text(settings.threads));
  count_tiles(height, width, settings.tile);
}

int64_t LatentCoder::count_tiles(int64_t height, int64_t width, int64_t tile) const {
  const auto side = [](const char* name, int64_t value, int64_t multiple) {
    require(value >= 1 && value <= kMaxSide && value % multiple == 0,
            std::string(name) + " must be a multiple of " + std::to_string(multiple) +
                ", at most 2^24, got " + std::to_string(value));
  };
  side("height", height, sizes_.mixer.patch_h);
  side("width", width, sizes_.mixer.patch_w);
  require(tile >= std::max(sizes_.mixer.patch_h, sizes_.mixer.patch_w) && tile <= kMaxTile,
          "tile must hold a patch and be at most " + std::to_string(kMaxTile) + ", got " +
              std::to_string(tile));
  const Pitch pitch = tile_pitch(sizes_.mixer, tile);
  return transform::ceil_div(height, pitch.rows) * transform::ceil_div(width, pitch.columns);
}

std::vector<transform::Grid> LatentCoder::tile_regions(int64_t height, int64_t width,
                                                       int64_t tile) const {
  const Pitch pitch = tile_pitch(sizes_.mixer, tile);
  std::vector<transform::Grid> regions;
  for (int64_t top = 0; top < height; top += pitch.rows) {
    for (int64_t left = 0; left < width; left += pitch.columns) {
      regions.push_back(
          {top, left, std::min(pitch.rows, height - top), std::min(pitch.columns, width - left)});
    }
  }
  return regions;
}

std::vector<bool> LatentCoder::tiles_in(const transform::Grid& region, int64_t height,
                                        int64_t width, int64_t tile) const {
  std::vector<bool> inside;
  for (const transform::Grid& one : tile_regions(height, width, tile)) {
    inside.push_back(one.top < region.top + region.rows && region.top < one.top + one.rows &&
                     one.left < region.left + region.columns &&
                     region.left < one.left + one.columns);
  }
  return inside;
}

LevelRows LatentCoder::level_rows(int64_t quality) const {
  const ScopedFloatMode mode;
  const int64_t m = sizes_.latent_channels, n = sizes_.hyper_channels;
  LevelRows rows{level_row(gain_, m, quality), level_row(shrinkage_, m, quality),
                 level_row(hyper_gain_, n, quality), level_row(hyper_inverse_gain_, n, quality),
                 AlignedVector(static_cast<size_t>(sizes_.mixer.width))};
  for (size_t i = 0; i < rows.gain.size(); ++i) rows.inverse_gain[i] /= rows.gain[i];
  mixer_.level_embedding(quality, rows.embedding.data());
  return rows;
}

int64_t LatentCoder::band_rows(int64_t height, int64_t width, const Settings& settings) const {
  const Pitch pitch = tile_pitch(sizes_.mixer, settings.tile);
  const int64_t rows = transform::ceil_div(height, pitch.rows);
  const int64_t columns = transform::ceil_div(width, pitch.columns);
  const int64_t most = transform::ceil_div(kTilesPerThread * settings.threads, columns);
  const int64_t bands = transform::ceil_div(rows, most);
  return transform::ceil_div(rows, bands) * pitch.rows;
}

int64_t LatentCoder::hyper_size(int64_t height, int64_t width) const {
  return transform::ceil_div(height, transform::kHyperStride) *
         transform::ceil_div(width, transform::kHyperStride) * sizes_.hyper_channels;
}

void LatentCoder::read_hyper(const int16_t* symbols, size_t count, int64_t quality,
                             float* z_hat) const {
  const auto n = static_cast<size_t>(sizes_.hyper_channels);
  const AlignedVector gains = level_row(hyper_inverse_gain_, sizes_.hyper_channels, quality);
  for (size_t i = 0; i < count; ++i) {
    z_hat[i] = (static_cast<float>(symbols[i]) + medians_[i % n]) * gains[i % n];
  }
}

// A latent on its way into streams: first extend(), then jobs() of the rows that it covers, which
// are run and collected.
class LatentCoder::Encoding {
 public:
  Encoding(const LatentCoder& coder, int64_t height, int64_t width, const Settings& settings)
      : coder_(coder),
        settings_(settings),
        height_(height),
        width_(width),
        hyper_height_(transform::ceil_div(height, transform::kHyperStride)),
        symbols_(static_cast<size_t>(coder.hyper_size(height, width))),
        z_hat_(symbols_.size()) {}

  // Codes as much of z as the rows before `bottom` depend on. Scales rows of y by its gains in
  // place, each when it is first seen.
  void extend(float* y,  // [.., width, M], rows [first, source_end(bottom))
              int64_t first, int64_t bottom, Watch& watch) {
    const int64_t m = coder_.sizes_.latent_channels, n = coder_.sizes_.hyper_channels;
    const int64_t y_end = source_end(bottom, height_);
    const transform::HyperAnalysis::Rows rows{
        z_rows_, transform::HyperSynthesis::depth(bottom, hyper_height_)};
    const int64_t row_size = static_cast<int64_t>(symbols_.size()) / hyper_height_;
    const AlignedVector gains = level_row(coder_.gain_, m, settings_.quality);
    const auto threads = static_cast<int>(std::min<int64_t>(settings_.threads, height_));
    const ArenaPool::Lease arena(coder_.arenas_);
    float* z = arena->take<float>((rows.end - rows.begin) * row_size);
    float* scratch = arena->take<float>(coder_.h_a_.scratch_size(threads, height_, width_));
    run_team(threads, [&](const Member& member) {
      const Member::Range share = member.share(y_end - y_rows_);
      float* values = y + (y_rows_ + share.begin - first) * width_ * m;
      for (int64_t i = 0; i < (share.end - share.begin) * width_; ++i, values += m) {
        for (int64_t c = 0; c < m; ++c) values[c] *= gains[static_cast<size_t>(c)];
      }
      member.barrier();
      coder_.h_a_.run(member, y, first, height_, width_, rows, z, scratch, watch);
    });
    const AlignedVector hyper_gains = level_row(coder_.hyper_gain_, n, settings_.quality);
    int16_t* symbols = symbols_.data() + rows.begin * row_size;
    const int64_t count = (rows.end - rows.begin) * row_size;
    for (int64_t i = 0; i < count; ++i) {
      const auto channel = static_cast<size_t>(i % n);
      float value = z[i] * hyper_gains[channel] - coder_.medians_[channel];
      if (!(strict::absolute(value) < 3.0e38f)) {
        throw NonFiniteError(non_finite_hyper_latent());
      }
      value = strict::smaller(strict::larger(value, kMinSymbol), kMaxSymbol);
      symbols[i] = static_cast<int16_t>(strict::round_half_even(value));
    }
    coder_.read_hyper(symbols, static_cast<size_t>(count), settings_.quality,
                      z_hat_.data() + rows.begin * row_size);
    z_rows_ = rows.end;
    y_rows_ = y_end;
  }

  // The tiles of rows [top, bottom), which extend() has seen.
  std::vector<Job> jobs(int64_t top, int64_t bottom,
                        const float* y,  // [.., width, M] from row `top` on
                        float* y_hat) {  // [height, width, M], or null
    std::vector<Job> jobs =
        coder_.make_jobs(height_, width_, settings_, z_hat_.data(), top, bottom);
    for (Job& job : jobs) {
      job.y = y;
      job.y_first = top;
      job.y_hat = y_hat;
    }
    if (top > 0) return jobs;
    jobs.front().held = z_rows_ < hyper_height_;
    if (!jobs.front().held) push_hyper(jobs.front());
    return jobs;
  }

  // Takes what became of a job.
  void collect(Job& job) {
    if (job.held) {
      first_ = std::make_unique<Job>(std::move(job));
      coded_.tiles.push_back({{}, first_->checksum});
      return;
    }
    coded_.tiles.push_back({std::move(job.stream), job.checksum});
    coded_.num_coded += job.num_coded;
    coded_.num_escaped += job.num_escaped;
  }

  CodedLatent finish() {
    coded_.num_symbols =
        static_cast<int64_t>(symbols_.size()) + height_ * width_ * coder_.sizes_.latent_channels;
    if (first_) {
      push_hyper(*first_);
      const auto groups = static_cast<size_t>(coder_.sizes_.mixer.groups());
      coder_.push_tile(*first_, first_->symbols.data(), first_->indexes.data(),
                       static_cast<int64_t>(first_->symbols.size() / groups));
      coded_.tiles.front().stream = std::move(first_->stream);
      coded_.num_coded += first_->num_coded;
      coded_.num_escaped += first_->num_escaped;
    }
    return std::move(coded_);
  }

 private:
  void push_hyper(Job& job) const {
    job.encoder.push(symbols_.data(), coder_.hyper_indexes(symbols_.size()).data(),
                     static_cast<int64_t>(symbols_.size()), coder_.z_tables_, 0);
  }

  const LatentCoder& coder_;
  const Settings& settings_;
  int64_t height_, width_, hyper_height_;
  int64_t y_rows_ = 0, z_rows_ = 0;  // that extend() has seen, and made
  std::vector<int16_t> symbols_;     // of z
  AlignedVector z_hat_;
  std::unique_ptr<Job> first_;  // where it is held
  CodedLatent coded_;
};

std::vector<CodedLatent> LatentCoder::encode(float* y, int64_t batch, int64_t height, int64_t width,
                                             const std::vector<Settings>& settings, float* y_hat,
                                             StageTimes& times, Watch& watch) const {
  const ScopedFloatMode mode;
  const int64_t plane = height * width * sizes_.latent_channels;
  int64_t tiles = 0;
  for (const Settings& one : settings) {
    check(height, width, one);
    tiles += count_tiles(height, width, one.tile);
  }
  watch.begin(tiles);
  std::vector<std::unique_ptr<Encoding>> encodings;
  std::vector<Job> jobs;
  const auto start = Clock::now();
  for (int64_t item = 0; item < batch; ++item) {
    float* values = y + item * plane;
    encodings.push_back(
        std::make_unique<Encoding>(*this, height, width, settings[static_cast<size_t>(item)]));
    encodings.back()->extend(values, 0, height, watch);
    for (Job& job : encodings.back()->jobs(0, height, values,
                                           y_hat == nullptr ? nullptr : y_hat + item * plane)) {
      job.item = item;
      jobs.push_back(std::move(job));
    }
  }
  times.hyper += seconds_since(start);
  run_jobs(jobs, settings.front().threads, times, watch);
  for (Job& job : jobs) encodings[static_cast<size_t>(job.item)]->collect(job);
  std::vector<CodedLatent> coded;
  for (const auto& encoding : encodings) coded.push_back(encoding->finish());
  watch.finish();
  return coded;
}

CodedLatent LatentCoder::encode(const RowSource& y, int64_t height, int64_t width,
                                const Settings& settings, float* y_hat, StageTimes& times,
                                Watch& watch) const {
  const ScopedFloatMode mode;
  check(height, width, settings);
  watch.begin(count_tiles(height, width, settings.tile));
  Encoding encoding(*this, height, width, settings);
  const int64_t band = band_rows(height, width, settings);
  for (int64_t top = 0; top < height; top += band) {
    const int64_t bottom = std::min(top + band, height);
    float* rows = y(top, source_end(bottom, height));
    const auto start = Clock::now();
    encoding.extend(rows, top, bottom, watch);
    times.hyper += seconds_since(start);
    std::vector<Job> jobs = encoding.jobs(top, bottom, rows, y_hat);
    run_jobs(jobs, settings.threads, times, watch);
    for (Job& job : jobs) encoding.collect(job);
  }
  const auto start = Clock::now();
  CodedLatent coded = encoding.finish();
  times.rans += seconds_since(start);
  watch.finish();
  return coded;
}

int64_t LatentCoder::source_rows(int64_t height, int64_t width, const Settings& settings) const {
  const int64_t band = band_rows(height, width, settings);
  int64_t most = 0;
  for (int64_t top = 0; top < height; top += band) {
    most = std::max(most, source_end(std::min(top + band, height), height) - top);
  }
  return most;
}

// A latent on its way out of streams.
class LatentCoder::Decoding {
 public:
  // Decodes z.
  Decoding(const LatentCoder& coder, const std::vector<TileView>& tiles, int64_t height,
           int64_t width, const Settings& settings)
      : coder_(coder), tiles_(tiles), settings_(settings), height_(height), width_(width) {
    coder.check(height, width, settings);
    const int64_t count = coder.count_tiles(height, width, settings.tile);
    require(static_cast<int64_t>(tiles.size()) == count,
            "tiles must be " + std::to_string(count) + ", got " + std::to_string(tiles.size()));
    std::vector<int16_t> symbols(static_cast<size_t>(coder.hyper_size(height, width)));
    try {
      first_ = std::make_unique<entropy::Decoder>(tiles[0].data, tiles[0].size);
      first_->pop(coder.hyper_indexes(symbols.size()).data(), static_cast<int64_t>(symbols.size()),
                  coder.z_tables_, 0, symbols.data());
    } catch (const entropy::StreamError& error) {
      throw TileError(0, error.what());
    }
    z_hat_.resize(symbols.size());
    coder.read_hyper(symbols.data(), symbols.size(), settings.quality, z_hat_.data());
  }

  // The wanted tiles of rows [top, bottom); their y_hat is left to the caller.
  std::vector<Job> jobs(int64_t top, int64_t bottom) {
    std::vector<Job> jobs;
    for (Job& job : coder_.make_jobs(height_, width_, settings_, z_hat_.data(), top, bottom)) {
      job.data = tiles_[static_cast<size_t>(job.index)];
      if (!job.data.wanted) continue;
      job.checksum = job.data.checksum;
      if (job.index == 0) job.decoder = std::move(first_);
      jobs.push_back(std::move(job));
    }
    return jobs;
  }

 private:
  const LatentCoder& coder_;
  const std::vector<TileView>& tiles_;
  const Settings& settings_;
  int64_t height_, width_;
  std::unique_ptr<entropy::Decoder> first_;  // has given z
  AlignedVector z_hat_;
};

void LatentCoder::decode(const std::vector<std::vector<TileView>>& tiles, int64_t height,
                         int64_t width, const std::vector<Settings>& settings, float* y_hat,
                         StageTimes& times, Watch& watch) const {
  const ScopedFloatMode mode;
  const int64_t plane = height * width * sizes_.latent_channels;
  std::vector<std::unique_ptr<Decoding>> decodings;
  std::vector<Job> jobs;
  const auto start = Clock::now();
  for (size_t item = 0; item < tiles.size(); ++item) {
    decodings.push_back(
        std::make_unique<Decoding>(*this, tiles[item], height, width, settings[item]));
    for (Job& job : decodings.back()->jobs(0, height)) {
      job.item = static_cast<int64_t>(item);
      job.y_hat = y_hat + job.item * plane;
      jobs.push_back(std::move(job));
    }
  }
  times.rans += seconds_since(start);
  watch.begin(static_cast<int64_t>(jobs.size()));
  run_jobs(jobs, settings.front().threads, times, watch);
  watch.finish();
}

void LatentCoder::decode(const std::vector<TileView>& tiles, int64_t height, int64_t width,
                         const Settings& settings, const RowTarget& y_hat, StageTimes& times,
                         Watch& watch) const {
  const ScopedFloatMode mode;
  const auto start = Clock::now();
  Decoding decoding(*this, tiles, height, width, settings);
  times.rans += seconds_since(start);
  watch.begin(
      std::count_if(tiles.begin(), tiles.end(), [](const TileView& t) { return t.wanted; }));
  const int64_t band = band_rows(height, width, settings);
  for (int64_t top = 0; top < height; top += band) {
    const int64_t bottom = std::min(top + band, height);
    std::vector<Job> jobs = decoding.jobs(top, bottom);
    if (jobs.empty()) continue;
    float* rows = y_hat.room(top, bottom);
    for (Job& job : jobs) {
      job.y_hat = rows;
      job.y_hat_first = top;
    }
    run_jobs(jobs, settings.threads, times, watch);
    y_hat.ready(top, bottom);
  }
  watch.finish();
}

std::vector<uint16_t> LatentCoder::hyper_indexes(size_t count) const {
  std::vector<uint16_t> indexes(count);
  const auto channels = static_cast<size_t>(sizes_.hyper_channels);
  for (size_t i = 0; i < count; ++i) indexes[i] = static_cast<uint16_t>(i % channels);
  return indexes;
}

// Those of rows [top, bottom).
std::vector<LatentCoder::Job> LatentCoder::make_jobs(int64_t height, int64_t width,
                                                     const Settings& settings, const float* z_hat,
                                                     int64_t top, int64_t bottom) const {
  std::vector<Job> jobs;
  int64_t index = 0;
  for (const transform::Grid& region : tile_regions(height, width, settings.tile)) {
    Job job{};
    job.index = index++;
    if (region.top < top || region.top >= bottom) continue;
    job.region = region;
    job.height = height;
    job.width = width;
    job.z_hat = z_hat;
    job.settings = &settings;
    jobs.push_back(std::move(job));
  }
  return jobs;
}

void LatentCoder::run_jobs(std::vector<Job>& jobs, int threads, StageTimes& times,
                           Watch& watch) const {
  if (jobs.empty()) return;
  const auto start = Clock::now();
  int64_t largest = 0;
  for (const Job& job : jobs) {
    const int64_t tokens = job.region.count() / (sizes_.mixer.patch_h * sizes_.mixer.patch_w);
    largest = std::max(largest, mixer_.tile_bytes(tokens, 1));
  }
  const auto teams = static_cast<int>(std::min<int64_t>(
      {threads, static_cast<int64_t>(jobs.size()), std::max<int64_t>(1, kTileMemory / largest)}));
  std::atomic<size_t> next{0};
  std::mutex mutex;
  std::condition_variable finished;
  int idle = 0;  // teams that found no more jobs
  StageTimes sums;
  // The first tile that fails is the one reported: tiles ahead of it have all been taken by then,
  // and those behind it need not be.
  size_t failed = jobs.size();
  std::exception_ptr failure;
  run_team(teams, [&](const Member& team) {
    const bool calling = team.index() == 0;
    const int members = threads / teams + (team.index() < threads % teams ? 1 : 0);
    const auto pass = [&] { watch.pass(calling); };
    const ArenaPool::Lease arena(arenas_);
    for (size_t i = next.fetch_add(1); i < jobs.size(); i = next.fetch_add(1)) {
      try {
        const StageTimes spent = run_tile(*arena, members, jobs[i], pass);
        arena->release(0);
        watch.count();
        const std::lock_guard<std::mutex> lock(mutex);
        sums.hyper += spent.hyper;
        sums.entropy_model += spent.entropy_model;
        sums.rans += spent.rans;
      } catch (const Stopped&) {
        next.store(jobs.size());
      } catch (...) {
        const std::lock_guard<std::mutex> lock(mutex);
        next.store(jobs.size());
        if (i < failed) {
          failed = i;
          failure = std::current_exception();
        }
      }
    }
    std::unique_lock<std::mutex> lock(mutex);
    ++idle;
    finished.notify_one();
    while (calling && idle < team.size()) {
      finished.wait_for(lock, Watch::kPatience);
      lock.unlock();
      watch.poll();
      lock.lock();
    }
  });
  watch.pass(true);
  if (failure) std::rethrow_exception(failure);
  const double scale = seconds_since(start) / (sums.hyper + sums.entropy_model + sums.rans);
  times.hyper += sums.hyper * scale;
  times.entropy_model += sums.entropy_model * scale;
  times.rans += sums.rans * scale;
}

// Its first member calls `pass` once a step.
StageTimes LatentCoder::run_tile(Arena& arena, int members, Job& job,
                                 const std::function<void()>& pass) const {
  const mixer::MixerSizes& sizes = sizes_.mixer;
  const int64_t height = job.region.rows / sizes.patch_h;
  const int64_t width = job.region.columns / sizes.patch_w;
  const int64_t count = height * width * sizes.channels;  // of a group
  const int64_t blocks = transform::ceil_div(height * width, strict::kTokenBlock);
  members = static_cast<int>(std::min<int64_t>(members, blocks));  // more would find nothing to do
  TileRun run{};
  run.start = Clock::now();
  run.tile = mixer_.make_tile(arena, height, width, members);
  float* psi = arena.take<float>(job.region.count() * sizes.width);
  float* level = arena.take<float>(sizes.width);
  mixer_.level_embedding(job.settings->quality, level);
  run.tile.psi = psi;
  run.tile.level = level;
  run.y_group = arena.take<float>(count);
  run.symbols = arena.take<int16_t>(sizes.groups() * count);
  run.indexes = arena.take<uint8_t>(sizes.groups() * count);
  float* scratch = arena.take<float>(h_s_.scratch_size(members, job.region));
  try {
    if (job.y == nullptr && !job.decoder) {
      job.decoder = std::make_unique<entropy::Decoder>(job.data.data, job.data.size);
    }
    run_team(members, [&](const Member& member) {
      h_s_.run(member, job.z_hat, transform::ceil_div(job.height, transform::kHyperStride),
               transform::ceil_div(job.width, transform::kHyperStride), job.region, psi, scratch);
      member.barrier();
      if (member.index() == 0) run.times.hyper = seconds_since(run.start);
      for (int64_t step = 0; step < sizes.groups(); ++step) {
        if (member.index() == 0) pass();
        mixer_.predict(member, run.tile, step);
        if (job.y != nullptr) {
          encode_group(member, job, run, step);
        } else {
          decode_group(member, job, run, step);
        }
        mixer_.correct(member, run.tile, step);
      }
      if (job.y_hat == nullptr) return;
      member.barrier();
      merge_groups(member, job, run.tile);
    });
    if (job.y == nullptr) job.decoder->finish();
  } catch (const entropy::StreamError& error) {
    throw TileError(job.index, error.what());
  } catch (const NonFiniteError& error) {
    if (job.y != nullptr) throw;
    throw TileError(job.index, error.what());
  }
  const uint32_t found = checksum(run.tile);
  if (job.y == nullptr && found != job.checksum) {
    throw TileError(job.index, wrong_checksum(found, job.checksum));
  }
  job.checksum = found;
  run.times.entropy_model = seconds_since(run.start) - run.times.hyper - run.times.rans;
  if (job.y != nullptr) {
    const auto rans_start = Clock::now();
    if (job.held) {
      job.symbols.assign(run.symbols, run.symbols + sizes.groups() * count);
      job.indexes.assign(run.indexes, run.indexes + sizes.groups() * count);
    } else {
      push_tile(job, run.symbols, run.indexes, count);
    }
    run.times.rans += seconds_since(rans_start);
  }
  return run.times;
}

// The rest of a tile's stream, and nothing of the encoder's memory.
void LatentCoder::push_tile(Job& job,
                            const int16_t* symbols,  // [G, count]
                            const uint8_t* indexes,  // [G, count]
                            int64_t count) const {
  for (int64_t step = 0; step < sizes_.mixer.groups(); ++step) {
    job.encoder.push(symbols + step * count, indexes + step * count, count, y_tables_,
                     job.settings->skip_below);
  }
  job.stream = job.encoder.finish(0);
  job.num_coded = static_cast<int64_t>(job.encoder.num_coded());
  job.num_escaped = static_cast<int64_t>(job.encoder.num_escaped());
  job.encoder = entropy::Encoder();
}

void LatentCoder::encode_group(const Member& member, const Job& job, const TileRun& run,
                               int64_t step) const {
  const mixer::MixerSizes& sizes = sizes_.mixer;
  const mixer::TileState& tile = run.tile;
  const int64_t c = sizes.channels;
  const Member::Range own = mixer_.rows(member, tile);
  if (own.begin == own.end) return;
  const GroupView group(sizes, step, job.region, job.y_first, job.width, sizes_.latent_channels);
  for (int64_t token = own.begin; token < own.end; ++token) {
    const float* y = job.y + group.offset(token / tile.width, token % tile.width);
    std::copy(y, y + c, run.y_group + token * c);
  }
  const int64_t at = own.begin * c, in_tile = step * tile.tokens * c + at;
  check_finite(entropy::quantize_group(
                   {run.y_group + at, tile.mean + at, tile.raw_scale + at, thresholds_.data(),
                    dead_zone_.data(), run.symbols + in_tile, run.indexes + in_tile,
                    tile.y_hat + in_tile, (own.end - own.begin) * c,
                    static_cast<int64_t>(thresholds_.size()), job.settings->skip_below}),
               step);
}

void LatentCoder::decode_group(const Member& member, const Job& job, TileRun& run,
                               int64_t step) const {
  const mixer::TileState& tile = run.tile;
  const int64_t c = sizes_.mixer.channels, count = tile.tokens * c;
  const Member::Range own = mixer_.rows(member, tile);
  const int64_t at = own.begin * c, size = (own.end - own.begin) * c;
  int16_t* symbols = run.symbols + step * count;
  uint8_t* indexes = run.indexes + step * count;
  check_finite(
      entropy::scale_indexes({tile.raw_scale + at, tile.mean + at, thresholds_.data(), indexes + at,
                              size, static_cast<int64_t>(thresholds_.size())}),
      step);
  member.barrier();
  if (member.index() == 0) {
    const auto start = Clock::now();
    job.decoder->pop(indexes, count, y_tables_, job.settings->skip_below, symbols);
    run.times.rans += seconds_since(start);
  }
  member.barrier();
  entropy::dequantize_group({symbols + at, tile.mean + at, tile.y_hat + step * count + at, size});
}

void LatentCoder::merge_groups(const Member& member, const Job& job,
                               const mixer::TileState& tile) const {
  const mixer::MixerSizes& sizes = sizes_.mixer;
  const int64_t c = sizes.channels;
  const Member::Range rows = member.share(tile.height);
  for (int64_t step = 0; step < sizes.groups(); ++step) {
    const GroupView group(sizes, step, job.region, job.y_hat_first, job.width,
                          sizes_.latent_channels);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      for (int64_t column = 0; column < tile.width; ++column) {
        const int64_t token = row * tile.width + column;
        const float* from = tile.y_hat + (step * tile.tokens + token) * c;
        std::copy(from, from + c, job.y_hat + group.offset(row, column));
      }
    }
  }
}

uint32_t LatentCoder::checksum(const mixer::TileState& tile) const {
  constexpr int64_t kChunk = 1024;
  float chunk[kChunk];
  const int64_t count = sizes_.mixer.groups() * tile.tokens * sizes_.mixer.channels;
  uint32_t crc = 0;
  for (int64_t begin = 0; begin < count; begin += kChunk) {
    const int64_t size = std::min(kChunk, count - begin);
    for (int64_t i = 0; i < size; ++i) chunk[i] = tile.y_hat[begin + i] + 0.0f;  // no -0
    crc = crc32(crc, chunk, static_cast<size_t>(size) * sizeof(float));
  }
  return crc;
}

}  // namespace groupedmixer::codec
