// SPDX-License-Identifier: MIT
//
// Linear layers with their prologue (layer norm) and epilogues (activation, residual).

#include "strict/gemm_isa.h"

#include "strict/variant.h"

namespace groupedmixer::strict::GROUPEDMIXER_VARIANT {
namespace {

// Rows that share a pass over the weights: their A stays in the second-level cache.
constexpr int64_t kRowBlock = 8 * 24;

// One column tile of a block of rows.
struct LinearTile {
  const LinearParams& p;
  const float* x;
  int64_t x_stride;
  int64_t column;
  const char* ahead;  // what the next column tile reads, and how much of it a row's share is
  int64_t ahead_step;

  template <int R>
  __attribute__((noinline)) void run(int64_t row) const {
    const int64_t panel = column / kPanel, within = column % kPanel;
    const float* weight = p.weight + panel * kPanel * p.depth + within;
    Lanes start[kTileVectors];
    repeat<kTileVectors>(GROUPEDMIXER_EACH(c) { start[c] = load(p.bias + column + c * kLanes); });
    const Tile<R> tile = dot_tile<R>(x + row * x_stride, x_stride, weight, kPanel, p.depth, start,
                                     {ahead + row * p.depth / kTileRows * ahead_step, ahead_step});
    float sums[R * kTileColumns];
    repeat<R>(GROUPEDMIXER_EACH(r) {
      repeat<kTileVectors>(
          GROUPEDMIXER_EACH(c) { store(sums + r * kTileColumns + c * kLanes, tile.sum[r][c]); });
    });
    for (int r = 0; r < R; ++r) finish(row + r, sums + r * kTileColumns);
  }

  GROUPEDMIXER_STRICT Lanes activate(Activation activation, Lanes value) {
    if (activation == Activation::kGelu) return gelu(value);
    if (activation == Activation::kLeakyRelu) return leaky_relu(value);
    return value;
  }

  void finish(int64_t row, const float* sums) const {
    for (int c = 0; c < kTileVectors; ++c) {
      const int64_t first = column + c * kLanes;
      const int64_t valid = p.width - first < kLanes ? p.width - first : kLanes;
      if (valid <= 0) return;
      Lanes value = activate(p.activation, load(sums + c * kLanes));
      float* out = p.out + row * p.out_stride + first;
      const float* residual =
          p.residual == nullptr ? nullptr : p.residual + row * p.residual_stride + first;
      if (valid == kLanes) {
        if (residual != nullptr) value = load(residual) + value;
        store(out, value);
        continue;
      }
      float values[kLanes];
      store(values, value);
      for (int64_t i = 0; i < valid; ++i) {
        out[i] = residual == nullptr ? values[i] : residual[i] + values[i];
      }
    }
  }
};

}  // namespace

void norm(const NormParams& params) {
  const NormParams p = params;
  const float count = static_cast<float>(p.width);
  for (int64_t row = 0; row < p.rows; ++row) {
    const float* x = p.x + row * p.x_stride;
    float* out = p.out + row * p.out_stride;
    Lanes sum = load(x);
    for (int64_t i = kLanes; i < p.width; i += kLanes) sum = sum + load(x + i);
    const Lanes mean = broadcast(add_lanes(sum) / count);
    const Lanes first = load(x) - mean;
    Lanes squares = first * first;
    for (int64_t i = kLanes; i < p.width; i += kLanes) {
      const Lanes centred = load(x + i) - mean;
      squares = fused(centred, centred, squares);
    }
    const float variance = add_lanes(squares) / count;
    const Lanes scale = broadcast(1.0f / square_root(variance + kNormEpsilon));
    for (int64_t i = 0; i < p.width; i += kLanes) {
      const Lanes scaled = (load(x + i) - mean) * scale;
      store(out + i, fused(scaled, load(p.weight + i), load(p.bias + i)));
    }
  }
}

void linear(const LinearParams& params) {
  const LinearParams p = params;
  for (int64_t begin = 0; begin < p.rows; begin += kRowBlock) {
    const int64_t rows = p.rows - begin < kRowBlock ? p.rows - begin : kRowBlock;
    LinearParams block = p;
    block.out = p.out + begin * p.out_stride;
    if (p.residual != nullptr) block.residual = p.residual + begin * p.residual_stride;
    const float* x = p.x + begin * p.x_stride;
    int64_t x_stride = p.x_stride;
    if (p.norm_weight != nullptr) {
      norm({x, x_stride, p.norm_weight, p.norm_bias, p.normed, p.depth, rows, p.depth});
      x = p.normed;
      x_stride = p.depth;
    }
    const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
    for (int64_t column = 0; column < p.width; column += kTileColumns) {
      const char* ahead = reinterpret_cast<const char*>(p.weight + (column + kTileColumns) /
                                                                       kPanel * kPanel * p.depth);
      const int64_t step = static_cast<int64_t>(sizeof(float)) * kTileColumns / tiles;
      visit_tiles(rows, LinearTile{block, x, x_stride, column, ahead, step});
    }
  }
}

}  // namespace groupedmixer::strict::GROUPEDMIXER_VARIANT
