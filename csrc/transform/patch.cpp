// SPDX-License-Identifier: MIT

#include "transform/patch.h"

#include <algorithm>
#include <cstring>

#include "strict/kernels.h"
#include "strict/math.h"

namespace groupedmixer::transform {
namespace {

using strict::Activation;

constexpr int64_t kHalf = kLatentStride / 2;                          // pixels at 1/8
constexpr int64_t kPatch = kColours * kLatentStride * kLatentStride;  // samples to a latent
constexpr int64_t kQuarter = kPatch / 4;

// Latent positions whose samples are in floats at a time.
constexpr int64_t kPatches = 48;

// Latent positions along an axis: those wanted, and those that have to be computed for them.
struct Span {
  int64_t begin, end;
  int64_t from, to;
  int64_t size() const { return to - from; }
};

// A convolution at 1/8 sees half a latent position.
int64_t halo(const BlockStack& early, const BlockStack& late) {
  return late.depth() + ceil_div(early.depth(), 2);
}

Span with_halo(int64_t begin, int64_t end, int64_t size, int64_t halo) {
  return {begin, end, std::max(begin - halo, int64_t{0}), std::min(end + halo, size)};
}

Span latents_of(int64_t first_pixel, int64_t last_pixel, int64_t size, int64_t halo) {
  return with_halo(first_pixel / kLatentStride, ceil_div(last_pixel, kLatentStride), size, halo);
}

// Bands of columns of about the same width.
template <typename Visit>
void for_bands(const Span& columns, int64_t band, int64_t size, int64_t halo, const Visit& visit) {
  for_parts(columns.begin, columns.end, band,
            [&](int64_t begin, int64_t end) { visit(with_halo(begin, end, size, halo)); });
}

}  // namespace

// ---- g_a ----------------------------------------------------------------------------------------

PatchAnalysis::PatchAnalysis(const WeightMap& weights, const std::string& prefix,
                             const PatchSizes& sizes, const PatchTiling& tiling)
    : tiling_(tiling),
      linear_(load_layer(weights, prefix + "linear", sizes.latent_channels, kPatch, 1)),
      first_(load_layer(weights, prefix + "network.1", sizes.wide, kQuarter, 1)),
      join_(load_layer(weights, prefix + "network." + std::to_string(3 + sizes.early), sizes.narrow,
                       4 * sizes.wide, 1)),
      last_(load_layer(weights, prefix + "network." + std::to_string(4 + sizes.early + sizes.late),
                       sizes.latent_channels, sizes.narrow, 1)),
      early_(weights, prefix + "network.", 2, sizes.early, sizes.wide),
      late_(weights, prefix + "network.", 4 + sizes.early, sizes.late, sizes.narrow) {
  for (size_t i = 0; i < samples_.size(); ++i) {
    samples_[i] = strict::fused(static_cast<float>(i), 0x1.010102p-8f, -0.5f);
  }
}

// visit(columns, stream) for each band.
template <typename Visit>
void PatchAnalysis::for_streams(int members, int64_t latent_height, int64_t latent_width,
                                const Visit& visit) const {
  const Span all{0, latent_width, 0, latent_width};
  for_bands(all, tiling_.band, latent_width, halo(early_, late_), [&](const Span& columns) {
    visit(columns,
          Stream(early_, 2, late_, 1, latent_height, columns.size(), members, tiling_.strip));
  });
}

struct PatchAnalysis::Pass {
  const PatchAnalysis& of;
  const uint8_t* rgb;
  int64_t height, width;
  int64_t latent_width;
  LatentRows<float> y;
  Span columns;
  const Stream& rows;
  float* scratch;

  // Of one member.
  static int64_t scratch_size(const PatchAnalysis& of, const Stream& rows) {
    return std::max(
        {kPatches * (kPatch + 2 * kQuarter), kChainPixels * of.join_.depth, rows.scratch_size()});
  }

  float* y_at(int64_t row, int64_t column) const {
    return y.data + ((row - y.first) * latent_width + column) * of.linear_.width;
  }

  // A patch of the picture; its last row and column go on for ever.
  void read_patch(int64_t row, int64_t column,
                  float* patch) const {  // [3, 16, 16]
    const int64_t left = column * kLatentStride;
    const bool inside = left + kLatentStride <= width;
    for (int64_t i = 0; i < kLatentStride; ++i, patch += kLatentStride) {
      const uint8_t* line = rgb + std::min(row * kLatentStride + i, height - 1) * width * kColours;
      for (int64_t j = 0; j < kLatentStride; ++j) {
        const uint8_t* pixel =
            line + (inside ? left + j : std::min(left + j, width - 1)) * kColours;
        for (int64_t c = 0; c < kColours; ++c) {
          patch[c * kLatentStride * kLatentStride + j] = of.samples_[pixel[c]];
        }
      }
    }
  }

  // The upper or lower half of a patch as two of half the size.
  static void halve_patch(const float* patch,                // [3, 16, 16]
                          int64_t lower, float* quarters) {  // [2, 3, 8, 8]
    for (int64_t right = 0; right < 2; ++right) {
      for (int64_t c = 0; c < kColours; ++c) {
        const float* line = patch + (c * kLatentStride + lower * kHalf) * kLatentStride;
        for (int64_t i = 0; i < kHalf; ++i, line += kLatentStride, quarters += kHalf) {
          std::memcpy(quarters, line + right * kHalf, kHalf * sizeof(float));
        }
      }
    }
  }

  void source(int64_t begin, int64_t end) const {
    float* patches = scratch;                       // [kPatches, 768]
    float* quarters = patches + kPatches * kPatch;  // [2 kPatches, 192]
    for (int64_t row = begin; row < end; ++row) {
      for_parts(columns.from, columns.to, kPatches, [&](int64_t left, int64_t right) {
        const int64_t count = right - left;
        for (int64_t q = 0; q < count; ++q) read_patch(row, left + q, patches + q * kPatch);
        for (int64_t lower = 0; lower < 2; ++lower) {
          for (int64_t q = 0; q < count; ++q) {
            halve_patch(patches + q * kPatch, lower, quarters + 2 * q * kQuarter);
          }
          const int64_t pixel = 2 * (lower * columns.size() + left - columns.from);
          float* x = rows.first_row(row) + pixel * of.first_.width;
          apply(of.first_, {quarters, kQuarter, x, of.first_.width, 2 * count});
        }
        const int64_t first = std::max(left, columns.begin), last = std::min(right, columns.end);
        if (first >= last) return;
        apply(of.linear_, {patches + (first - left) * kPatch, kPatch, y_at(row, first),
                           of.linear_.width, last - first});
      });
    }
  }

  void bridge(int64_t begin, int64_t end) const {
    const int64_t wide = of.first_.width, narrow = of.join_.width;
    const int64_t pitch = 2 * columns.size() * wide;
    for (int64_t row = begin; row < end; ++row) {
      for_parts(0, columns.size(), kChainPixels, [&](int64_t left, int64_t right) {
        float* joined = scratch;  // [right - left, 4 wide]
        for (int64_t q = left; q < right; ++q, joined += 4 * wide) {
          const float* upper = rows.first_row(row) + 2 * q * wide;
          const float* lower = upper + pitch;
          for (int64_t c = 0; c < wide; ++c) {
            joined[4 * c] = upper[c];
            joined[4 * c + 1] = upper[wide + c];
            joined[4 * c + 2] = lower[c];
            joined[4 * c + 3] = lower[wide + c];
          }
        }
        apply(of.join_,
              {scratch, 4 * wide, rows.second_row(row) + left * narrow, narrow, right - left});
      });
    }
  }

  void finish(int64_t begin, int64_t end) const {
    for (int64_t row = begin; row < end; ++row) {
      const float* x = rows.second_row(row) + (columns.begin - columns.from) * of.last_.depth;
      float* out = y_at(row, columns.begin);
      apply(of.last_, {x, of.last_.depth, out, of.last_.width, columns.end - columns.begin,
                       Activation::kNone, out});
    }
  }
};

// Floats of a member's own, which lie ahead of the rows in memory.
int64_t PatchAnalysis::member_size(int64_t latent_height, int64_t latent_width) const {
  int64_t size = 0;
  for_streams(1, latent_height, latent_width, [&](const Span&, const Stream& rows) {
    size = std::max(size, Pass::scratch_size(*this, rows));
  });
  return size;
}

int64_t PatchAnalysis::scratch_size(int members, int64_t latent_height,
                                    int64_t latent_width) const {
  int64_t size = members * member_size(latent_height, latent_width);
  for_streams(members, latent_height, latent_width,
              [&](const Span&, const Stream& rows) { size += rows.buffers_size(); });
  return size;
}

int64_t PatchAnalysis::rows_ahead(int members, int64_t latent_height, int64_t latent_width) const {
  int64_t ahead = 0;
  for_streams(members, latent_height, latent_width,
              [&](const Span&, const Stream& rows) { ahead = std::max(ahead, rows.lag()); });
  return ahead;
}

void PatchAnalysis::run(const Member& member, int members, const uint8_t* rgb, int64_t height,
                        int64_t width, int64_t latent_height, int64_t latent_width, int64_t from,
                        int64_t to, const LatentRows<float>& y, float* scratch,
                        Watch& watch) const {
  const int64_t own_size = member_size(latent_height, latent_width);
  float* own = scratch + member.index() * own_size;
  float* buffers = scratch + members * own_size;
  for_streams(members, latent_height, latent_width, [&](const Span& columns, Stream rows) {
    const Pass pass{*this, rgb, height, width, latent_width, y, columns, rows, own};
    rows.run(
        member, buffers, own, rows.strips_until(from), rows.strips_until(to),
        [&](int64_t begin, int64_t end) {
          watch.pass(member.index() == 0);
          pass.source(begin, end);
        },
        [&](int64_t begin, int64_t end) { pass.bridge(begin, end); },
        [&](int64_t begin, int64_t end) { pass.finish(begin, end); });
    buffers += rows.buffers_size();
  });
}

// ---- g_s ----------------------------------------------------------------------------------------

namespace {

// Samples as interleaved pixels of the four quarters of a patch: [2, 2] of [8, 8, 3].
std::vector<int64_t> quartered_order() {
  std::vector<int64_t> order;
  for (int64_t quarter = 0; quarter < 4; ++quarter) {
    for (int64_t i = 0; i < kHalf; ++i) {
      for (int64_t j = 0; j < kHalf; ++j) {
        for (int64_t c = 0; c < kColours; ++c) {
          const int64_t row = quarter / 2 * kHalf + i, column = quarter % 2 * kHalf + j;
          order.push_back((c * kLatentStride + row) * kLatentStride + column);
        }
      }
    }
  }
  return order;
}

constexpr int64_t kLine = kHalf * kColours;  // samples of a row of a quarter

// The samples of a line, clamped and rounded. In steps, as compilers vectorise those. Adding 2^23
// leaves the rounded number in the last byte.
void to_bytes(const float* x, uint8_t* bytes) {
  float scaled[kLine];
  for (int64_t i = 0; i < kLine; ++i) scaled[i] = strict::larger(x[i], 0.0f);
  for (int64_t i = 0; i < kLine; ++i) scaled[i] = strict::smaller(scaled[i], 1.0f);
  for (int64_t i = 0; i < kLine; ++i) scaled[i] = scaled[i] * 255.0f + 0x1p23f;
  uint32_t bits[kLine];
  std::memcpy(bits, scaled, sizeof(bits));
  for (int64_t i = 0; i < kLine; ++i) bytes[i] = static_cast<uint8_t>(bits[i]);
}

void write_line(const float* x,  // [8, 3]
                bool grey, int64_t first_pixel, int64_t last_pixel, uint8_t* rgb) {
  float means[kLine];
  if (grey) {
    for (int64_t j = 0; j < kLine; j += kColours) {
      const float mean = ((x[j] + x[j + 1]) + x[j + 2]) / 3.0f;
      for (int64_t c = 0; c < kColours; ++c) means[j + c] = mean;
    }
    x = means;
  }
  uint8_t bytes[kLine];
  to_bytes(x, bytes);
  if (last_pixel - first_pixel == kHalf) {
    std::memcpy(rgb, bytes, kLine);
  } else {
    std::memcpy(rgb, bytes + first_pixel * kColours,
                static_cast<size_t>((last_pixel - first_pixel) * kColours));
  }
}

}  // namespace

PatchSynthesis::PatchSynthesis(const WeightMap& weights, const std::string& prefix,
                               const PatchSizes& sizes, const PatchTiling& tiling)
    : tiling_(tiling),
      linear_(load_layer(weights, prefix + "linear", kPatch, sizes.latent_channels, 1,
                         quartered_order())),
      first_(load_layer(weights, prefix + "network.0", sizes.narrow, sizes.latent_channels, 1)),
      split_(load_layer(weights, prefix + "network." + std::to_string(1 + sizes.late),
                        4 * sizes.wide, sizes.narrow, 1, shuffled_order(sizes.wide, 2))),
      last_(load_layer(weights, prefix + "network." + std::to_string(3 + sizes.late + sizes.early),
                       kQuarter, sizes.wide, 1, shuffled_order(kColours, kHalf))),
      late_(weights, prefix + "network.", 1, sizes.late, sizes.narrow),
      early_(weights, prefix + "network.", 3 + sizes.late, sizes.early, sizes.wide) {}

// visit(lines, columns, stream) for each band.
template <typename Visit>
void PatchSynthesis::for_streams(int members, int64_t latent_height, int64_t latent_width,
                                 const PixelRegion& region, const Visit& visit) const {
  const int64_t around = halo(early_, late_);
  const Span lines = latents_of(region.top, region.bottom, latent_height, around);
  const Span wanted = latents_of(region.left, region.right, latent_width, around);
  for_bands(wanted, tiling_.band, latent_width, around, [&](const Span& columns) {
    visit(lines, columns,
          Stream(late_, 1, early_, 2, lines.size(), columns.size(), members, tiling_.strip));
  });
}

struct PatchSynthesis::Pass {
  const PatchSynthesis& of;
  LatentRows<const float> y_hat;
  int64_t latent_width;
  PixelRegion region;
  bool grey;
  uint8_t* rgb;
  Span lines, columns;  // rows of the stream count from lines.from
  const Stream& rows;
  float* scratch;

  // Of one member.
  static int64_t scratch_size(const PatchSynthesis& of, const Stream& rows) {
    return std::max({kPatches * kPatch, kChainPixels * std::max(of.first_.depth, of.split_.width),
                     rows.scratch_size()});
  }

  const float* y_at(int64_t row, int64_t column) const {
    return y_hat.data +
           ((lines.from + row - y_hat.first) * latent_width + column) * of.first_.depth;
  }

  void source(int64_t begin, int64_t end) const {
    const int64_t channels = of.first_.depth, narrow = of.first_.width;
    for (int64_t row = begin; row < end; ++row) {
      for_parts(columns.from, columns.to, kChainPixels, [&](int64_t left, int64_t right) {
        strict::kernels().compand({y_at(row, left), scratch, (right - left) * channels});
        float* x = rows.first_row(row) + (left - columns.from) * narrow;
        apply(of.first_, {scratch, channels, x, narrow, right - left});
      });
    }
  }

  void bridge(int64_t begin, int64_t end) const {
    const int64_t narrow = of.first_.width, wide = of.last_.depth;
    const int64_t pair = 2 * wide;  // the upper or lower two pixels of a latent position
    for (int64_t row = begin; row < end; ++row) {
      for_parts(0, columns.size(), kChainPixels, [&](int64_t left, int64_t right) {
        const float* x = rows.first_row(row) + left * narrow;
        apply(of.split_, {x, narrow, scratch, 2 * pair, right - left});
        float* upper = rows.second_row(row) + left * pair;
        float* lower = upper + columns.size() * pair;
        for (int64_t q = 0; q < right - left; ++q) {
          const float* pixels = scratch + q * 2 * pair;
          std::memcpy(upper + q * pair, pixels, static_cast<size_t>(pair) * sizeof(float));
          std::memcpy(lower + q * pair, pixels + pair, static_cast<size_t>(pair) * sizeof(float));
        }
      });
    }
  }

  void finish(int64_t begin, int64_t end) const {
    begin = std::max(begin, lines.begin - lines.from);
    end = std::min(end, lines.end - lines.from);
    const int64_t wide = of.last_.depth;
    for (int64_t row = begin; row < end; ++row) {
      for_parts(columns.begin, columns.end, kPatches, [&](int64_t left, int64_t right) {
        float* patches = scratch;  // [kPatches, 2, 2, 8, 8, 3]
        apply(of.linear_, {y_at(row, left), of.linear_.depth, patches, kPatch, right - left});
        for (int64_t quarter = 0; quarter < 4; ++quarter) {
          const int64_t pixel = 2 * (quarter / 2 * columns.size() + left - columns.from);
          const float* x = rows.second_row(row) + (pixel + quarter % 2) * wide;
          float* out = patches + quarter * kQuarter;
          apply(of.last_, {x, 2 * wide, out, kPatch, right - left, Activation::kNone, out});
        }
        for (int64_t q = left; q < right; ++q, patches += kPatch) {
          for (int64_t quarter = 0; quarter < 4; ++quarter) {
            write_quarter(patches + quarter * kQuarter,
                          (lines.from + row) * kLatentStride + quarter / 2 * kHalf,
                          q * kLatentStride + quarter % 2 * kHalf);
          }
        }
      });
    }
  }

  // What the region has of the 8 x 8 pixels at (top, left).
  void write_quarter(const float* x,  // [8, 8, 3]
                     int64_t top, int64_t left) const {
    const int64_t first = std::max(region.left - left, int64_t{0});
    const int64_t last = std::min(region.right - left, kHalf);
    if (first >= last) return;
    for (int64_t i = 0; i < kHalf; ++i, x += kLine) {
      if (top + i < region.top || top + i >= region.bottom) continue;
      uint8_t* line = rgb + (top + i - region.top) * (region.right - region.left) * kColours;
      write_line(x, grey, first, last, line + (left + first - region.left) * kColours);
    }
  }
};

// Floats of a member's own, which lie ahead of the rows in memory.
int64_t PatchSynthesis::member_size(int64_t latent_height, int64_t latent_width,
                                    const PixelRegion& region) const {
  int64_t size = 0;
  for_streams(1, latent_height, latent_width, region,
              [&](const Span&, const Span&, const Stream& rows) {
                size = std::max(size, Pass::scratch_size(*this, rows));
              });
  return size;
}

int64_t PatchSynthesis::scratch_size(int members, int64_t latent_height, int64_t latent_width,
                                     const PixelRegion& region) const {
  int64_t size = members * member_size(latent_height, latent_width, region);
  for_streams(members, latent_height, latent_width, region,
              [&](const Span&, const Span&, const Stream& rows) { size += rows.buffers_size(); });
  return size;
}

PatchSynthesis::Rows PatchSynthesis::rows_of(const PixelRegion& region,
                                             int64_t latent_height) const {
  const Span lines = latents_of(region.top, region.bottom, latent_height, halo(early_, late_));
  return {lines.from, lines.to};
}

int64_t PatchSynthesis::rows_behind(int members, int64_t latent_height, int64_t latent_width,
                                    const PixelRegion& region) const {
  int64_t behind = 0;
  for_streams(
      members, latent_height, latent_width, region,
      [&](const Span&, const Span&, const Stream& rows) { behind = std::max(behind, rows.lag()); });
  return behind;
}

void PatchSynthesis::run(const Member& member, int members, const LatentRows<const float>& y_hat,
                         int64_t latent_height, int64_t latent_width, const PixelRegion& region,
                         int64_t from, int64_t to, bool grey, uint8_t* rgb, float* scratch,
                         Watch& watch) const {
  const int64_t own_size = member_size(latent_height, latent_width, region);
  float* own = scratch + member.index() * own_size;
  float* buffers = scratch + members * own_size;
  for_streams(members, latent_height, latent_width, region,
              [&](const Span& lines, const Span& columns, Stream rows) {
                const Pass pass{*this, y_hat, latent_width, region, grey,
                                rgb,   lines, columns,      rows,   own};
                rows.run(
                    member, buffers, own, rows.strips_with(from - lines.from),
                    rows.strips_with(to - lines.from),
                    [&](int64_t begin, int64_t end) {
                      watch.pass(member.index() == 0);
                      pass.source(begin, end);
                    },
                    [&](int64_t begin, int64_t end) { pass.bridge(begin, end); },
                    [&](int64_t begin, int64_t end) { pass.finish(begin, end); });
                buffers += rows.buffers_size();
              });
}

}  // namespace groupedmixer::transform
