// SPDX-License-Identifier: MIT

#include "transform/hyper.h"

#include <algorithm>
#include <cstring>

#include "strict/kernels.h"

namespace groupedmixer::transform {
namespace {

using strict::Activation;

// Floats of a member's gathered windows: with the weights, they stay in the second-level cache.
constexpr int64_t kWindows = 48 * 2304;

// Floats that a strip of h_a may take, if it has more than one row of z.
constexpr int64_t kStripFloats = int64_t{8} << 20;

// Pixels whose windows are gathered at a time.
int64_t block_size(const strict::PackedLinear& convolution) {
  return std::max(kWindows / convolution.depth, int64_t{1});
}

// Rows that the windows behind `rows` see of an image of this height.
Member::Range seen(Member::Range rows, int64_t stride, int64_t height) {
  return {std::max(rows.begin * stride - 1, int64_t{0}),
          std::min((rows.end - 1) * stride + 2, height)};
}

// The member's share of a convolution. Shares are of pixels, not rows: grids are small.
void convolve(const Member& member, const strict::PackedLinear& layer, Activation activation,
              const ImagePart& image, int64_t stride, const Grid& grid, float* windows,
              float* out) {  // [grid.rows, grid.columns, layer.width]
  const auto [begin, end] = member.share(grid.count(), 4);
  for_parts(begin, end, block_size(layer), [&](int64_t first, int64_t last) {
    gather_windows(image, stride, grid, first, last, windows);
    LayerCall call{windows,     layer.depth,  out + first * layer.width,
                   layer.width, last - first, activation};
    apply(layer, call);
  });
}

}  // namespace

// ---- h_a ----------------------------------------------------------------------------------------

HyperAnalysis::HyperAnalysis(const WeightMap& weights, const std::string& prefix,
                             int64_t latent_channels, int64_t hyper_width, int64_t hyper_channels,
                             int64_t strip)
    : full_(load_layer(weights, prefix + "0", hyper_width, latent_channels, 3)),
      half_(load_layer(weights, prefix + "2", hyper_width, hyper_width, 3)),
      quarter_(load_layer(weights, prefix + "4", hyper_channels, hyper_width, 3)),
      latent_channels_(latent_channels),
      hyper_width_(hyper_width),
      strip_(strip) {}

struct HyperAnalysis::Scratch {
  int64_t strip;  // rows of z at a time
  int64_t input, full, half, windows;
  int64_t size;
};

HyperAnalysis::Scratch HyperAnalysis::divide(int members, int64_t height, int64_t width) const {
  const int64_t rows = ceil_div(height, kHyperStride);
  const int64_t columns = ceil_div(width, kHyperStride) * kHyperStride;
  const int64_t row = kHyperStride * columns * (latent_channels_ + hyper_width_);
  Scratch s;
  s.strip = std::min(strip_ > 0 ? strip_ : std::max(kStripFloats / row, int64_t{1}), rows);
  s.input = 0;
  s.full = s.input + (4 * s.strip + 5) * columns * latent_channels_;
  s.half = s.full + (4 * s.strip + 3) * columns * hyper_width_;
  s.windows = s.half + (2 * s.strip + 1) * columns / 2 * hyper_width_;
  s.size = s.windows + members * std::max({kWindows, full_.depth, half_.depth});
  return s;
}

int64_t HyperAnalysis::scratch_size(int members, int64_t height, int64_t width) const {
  return divide(members, height, width).size;
}

int64_t HyperAnalysis::depth(int64_t end, int64_t height) {
  return std::min(kHyperStride * end + 1, height);
}

void HyperAnalysis::run(const Member& member, const float* scaled, int64_t first, int64_t height,
                        int64_t width, const Rows& rows_of_z, float* z, float* scratch,
                        Watch& watch) const {
  const Scratch s = divide(member.size(), height, width);
  const int64_t z_columns = ceil_div(width, kHyperStride);
  const int64_t rows = ceil_div(height, kHyperStride) * kHyperStride;  // padded, as are columns
  const int64_t columns = z_columns * kHyperStride;
  float* input = scratch + s.input;
  float* full = scratch + s.full;
  float* half = scratch + s.half;
  float* windows =
      scratch + s.windows + member.index() * std::max({kWindows, full_.depth, half_.depth});
  for_parts(rows_of_z.begin, rows_of_z.end, s.strip, [&](int64_t top, int64_t bottom) {
    watch.pass(member.index() == 0);
    const Member::Range z_part{top, bottom};
    const Member::Range half_part = seen(z_part, 2, rows / 2);
    const Member::Range full_part = seen(half_part, 2, rows);
    const Member::Range input_part = seen(full_part, 1, rows);

    const int64_t pitch = columns * latent_channels_;
    const auto share = member.share(input_part.end - input_part.begin);
    for (int64_t i = share.begin; i < share.end; ++i) {
      const int64_t y = std::min(input_part.begin + i, height - 1);
      float* row = input + i * pitch;
      strict::kernels().compand(
          {scaled + (y - first) * width * latent_channels_, row, width * latent_channels_});
      for (int64_t x = width; x < columns; ++x) {
        std::memcpy(row + x * latent_channels_, row + (width - 1) * latent_channels_,
                    static_cast<size_t>(latent_channels_) * sizeof(float));
      }
    }
    member.barrier();
    convolve(member, full_, Activation::kLeakyRelu,
             {input, input_part.begin, 0, columns, latent_channels_, rows, columns}, 1,
             {full_part.begin, 0, full_part.end - full_part.begin, columns}, windows, full);
    member.barrier();
    convolve(member, half_, Activation::kLeakyRelu,
             {full, full_part.begin, 0, columns, hyper_width_, rows, columns}, 2,
             {half_part.begin, 0, half_part.end - half_part.begin, columns / 2}, windows, half);
    member.barrier();
    convolve(member, quarter_, Activation::kNone,
             {half, half_part.begin, 0, columns / 2, hyper_width_, rows / 2, columns / 2}, 2,
             {z_part.begin, 0, z_part.end - z_part.begin, z_columns}, windows,
             z + (z_part.begin - rows_of_z.begin) * z_columns * quarter_.width);
  });
  member.barrier();
}

// ---- h_s ----------------------------------------------------------------------------------------

namespace {

// What one layer of h_s has to compute for the grid behind a shuffle: at half its scale.
Grid before_shuffle(const Grid& grid) {
  const int64_t top = grid.top / 2, left = grid.left / 2;
  return {top, left, ceil_div(grid.top + grid.rows, 2) - top,
          ceil_div(grid.left + grid.columns, 2) - left};
}

// What 3x3 windows on a grid see of an image.
Grid seen(const Grid& grid, int64_t height, int64_t width) {
  const auto rows = seen(Member::Range{grid.top, grid.top + grid.rows}, 1, height);
  const auto columns = seen(Member::Range{grid.left, grid.left + grid.columns}, 1, width);
  return {rows.begin, columns.begin, rows.end - rows.begin, columns.end - columns.begin};
}

// Behind a shuffle.
Grid doubled(const Grid& grid) {
  return {2 * grid.top, 2 * grid.left, 2 * grid.rows, 2 * grid.columns};
}

// Pixels begin .. end-1 of `grid`, each as [2, 2, channels], to the part of `to` that is there.
void shuffle(const float* x,  // [end - begin, 2, 2, channels]
             const Grid& grid, int64_t begin, int64_t end, int64_t channels, const Grid& to,
             float* out) {  // [to.rows, to.columns, channels]
  for (int64_t p = begin; p < end; ++p) {
    for (int64_t i = 0; i < 2; ++i) {
      const int64_t row = 2 * (grid.top + p / grid.columns) + i - to.top;
      for (int64_t j = 0; j < 2; ++j, x += channels) {
        const int64_t column = 2 * (grid.left + p % grid.columns) + j - to.left;
        if (row < 0 || row >= to.rows || column < 0 || column >= to.columns) continue;
        std::memcpy(out + (row * to.columns + column) * channels, x,
                    static_cast<size_t>(channels) * sizeof(float));
      }
    }
  }
}

}  // namespace

HyperSynthesis::HyperSynthesis(const WeightMap& weights, const std::string& prefix,
                               int64_t hyper_channels, int64_t hyper_width, int64_t features)
    : quarter_(load_layer(weights, prefix + "0.0", 4 * hyper_width, hyper_channels, 3,
                          shuffled_order(hyper_width, 2))),
      half_(load_layer(weights, prefix + "2.0", 4 * hyper_width, hyper_width, 3,
                       shuffled_order(hyper_width, 2))),
      last_(load_layer(weights, prefix + "4", features, hyper_width, 1)),
      hyper_channels_(hyper_channels),
      hyper_width_(hyper_width) {}

struct HyperSynthesis::Scratch {
  int64_t half;  // the image at 1/2 of the latent's scale
  int64_t windows, outputs, features;
  int64_t member;  // from one member's scratch to the next one's
  int64_t size;
};

HyperSynthesis::Scratch HyperSynthesis::divide(int members, const Grid& region) const {
  // At most, wherever the region is: rows of z under the windows of the rows under the region.
  const auto reach = [](int64_t side) { return 2 * ((side / 2 + 1 + 2) / 2 + 1); };
  const int64_t quarter_block = block_size(quarter_), half_block = block_size(half_);
  Scratch s;
  s.half = 0;
  const int64_t own = reach(region.rows) * reach(region.columns) * hyper_width_;
  s.windows = own;
  s.outputs = s.windows + std::max({kWindows, quarter_.depth, half_.depth});
  s.features = s.outputs + std::max(quarter_block, half_block) * 4 * hyper_width_;
  s.member = s.features + half_block * 4 * last_.width - own;
  s.size = own + members * s.member;
  return s;
}

int64_t HyperSynthesis::depth(int64_t end, int64_t hyper_height) {
  const int64_t half = ceil_div(end, 2) + 1;
  return std::min(ceil_div(half, 2) + 1, hyper_height);
}

int64_t HyperSynthesis::scratch_size(int members, const Grid& region) const {
  return divide(members, region).size;
}

void HyperSynthesis::run(const Member& member, const float* z_hat, int64_t hyper_height,
                         int64_t hyper_width, const Grid& region, float* psi,
                         float* scratch) const {
  const Scratch s = divide(member.size(), region);
  const Grid half_grid = before_shuffle(region);
  const Grid quarter_grid = before_shuffle(seen(half_grid, 2 * hyper_height, 2 * hyper_width));
  const Grid half_image = doubled(quarter_grid);
  float* half = scratch + s.half;
  float* windows = scratch + s.windows + member.index() * s.member;
  float* outputs = scratch + s.outputs + member.index() * s.member;
  float* features = scratch + s.features + member.index() * s.member;

  const ImagePart z{z_hat, 0, 0, hyper_width, hyper_channels_, hyper_height, hyper_width};
  auto share = member.share(quarter_grid.count(), 4);
  for_parts(share.begin, share.end, block_size(quarter_), [&](int64_t begin, int64_t end) {
    gather_windows(z, 1, quarter_grid, begin, end, windows);
    apply(quarter_,
          {windows, quarter_.depth, outputs, quarter_.width, end - begin, Activation::kLeakyRelu});
    shuffle(outputs, quarter_grid, begin, end, hyper_width_, half_image, half);
  });
  member.barrier();

  const ImagePart image{half,         half_image.top,   half_image.left, half_image.columns,
                        hyper_width_, 2 * hyper_height, 2 * hyper_width};
  share = member.share(half_grid.count(), 4);
  for_parts(share.begin, share.end, block_size(half_), [&](int64_t begin, int64_t end) {
    gather_windows(image, 1, half_grid, begin, end, windows);
    apply(half_, {windows, half_.depth, outputs, half_.width, end - begin, Activation::kLeakyRelu});
    apply(last_, {outputs, hyper_width_, features, last_.width, 4 * (end - begin)});
    shuffle(features, half_grid, begin, end, last_.width, region, psi);
  });
  member.barrier();
}

}  // namespace groupedmixer::transform
