// SPDX-License-Identifier: MIT
//
// Linear layers with their prologue (layer norm) and epilogues (activation, residual).

#include "strict/gemm_isa.h"

#include "strict/variant.h"

namespace groupedmixer::strict::GROUPEDMIXER_VARIANT {
namespace {

// One segment of K for V vectors of columns of a block of rows. The columns' weights of a segment
// stay in the first-level cache while all rows pass; the rows' running totals go through memory.
template <int V>
struct SegmentTile {
  static constexpr int kColumns = V * kLanes;

  const LinearParams& p;
  const float* x;  // [rows, size] of this segment
  int64_t x_stride;
  Columns weight;
  int64_t size;
  bool first, last;
  int64_t column;
  float* totals;      // [rows, kColumns]
  Ahead ahead;        // of the block's first row
  int64_t ahead_row;  // bytes of it a row

  template <int R>
  __attribute__((noinline)) void run(int64_t row) const {
    Tile<R, V> tile;
    repeat<V>(GROUPEDMIXER_EACH(v) {
      const Lanes start = first ? load(p.bias + column + v * kLanes) : broadcast(0.0f);
      repeat<R>(GROUPEDMIXER_EACH(r) { tile.sum[r][v] = start; });
    });
    run_chains(x + row * x_stride, x_stride, weight, size, tile,
               {ahead.next + row * ahead_row, ahead.step, ahead.panel});
    float* total = totals + row * kColumns;
    if (!first) {
      each(tile, [&](int r, int v, Lanes& sum) __attribute__((always_inline)) {
        sum = load(total + r * kColumns + v * kLanes) + sum;
      });
    }
    if (last && p.activation == Activation::kNone && column + kColumns <= p.width) {
      float* out = p.out + row * p.out_stride + column;
      if (p.residual != nullptr) {
        const float* residual = p.residual + row * p.residual_stride + column;
        each(tile, [&](int r, int v, Lanes& sum) __attribute__((always_inline)) {
          sum = load(residual + r * p.residual_stride + v * kLanes) + sum;
        });
      }
      each(tile, [&](int r, int v, Lanes& sum) __attribute__((always_inline)) {
        store(out + r * p.out_stride + v * kLanes, sum);
      });
      return;
    }
    each(tile, [&](int r, int v, Lanes& sum) __attribute__((always_inline)) {
      store(total + r * kColumns + v * kLanes, sum);
    });
    if (!last) return;
    for (int r = 0; r < R; ++r) finish(row + r, total + r * kColumns);
  }

  template <int R, typename Body>
  GROUPEDMIXER_STRICT void each(Tile<R, V>& tile, const Body& body) {
    repeat<R>(
        GROUPEDMIXER_EACH(r) { repeat<V>(GROUPEDMIXER_EACH(v) { body(r, v, tile.sum[r][v]); }); });
  }

  GROUPEDMIXER_STRICT Lanes activate(Activation activation, Lanes value) {
    if (activation == Activation::kGelu) return gelu(value);
    if (activation == Activation::kLeakyRelu) return leaky_relu(value);
    return value;
  }

  void finish(int64_t row, const float* sums) const {
    for (int v = 0; v < V; ++v) {
      const int64_t begin = column + v * kLanes;
      const int64_t valid = p.width - begin < kLanes ? p.width - begin : kLanes;
      if (valid <= 0) return;
      Lanes value = activate(p.activation, load(sums + v * kLanes));
      float* out = p.out + row * p.out_stride + begin;
      const float* residual =
          p.residual == nullptr ? nullptr : p.residual + row * p.residual_stride + begin;
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

// All segments of V vectors of columns. R: the most rows of a tile.
template <int R, int V>
void run_columns(const LinearParams& p, const float* x, int64_t x_stride, int64_t rows,
                 int64_t column, float* totals) {
  const int64_t panel = kPanel * p.depth;
  const int64_t tiles = (rows + R - 1) / R;
  for (int64_t k = 0; k < p.depth; k += kSegment) {
    const int64_t size = p.depth - k < kSegment ? p.depth - k : kSegment;
    const bool last = k + size == p.depth;
    const float* weight = p.weight + column / kPanel * panel + k * kPanel + column % kPanel;
    // The next segment of these panels, or the first one of the next.
    const float* next =
        last ? p.weight + (column + V * kLanes) / kPanel * panel : weight + size * kPanel;
    const auto ahead_row = static_cast<int64_t>(sizeof(float)) * kPanel * size / rows;
    const auto step = static_cast<int64_t>(sizeof(float)) * kPanel * 2 / tiles;
    visit_tiles<R>(rows, SegmentTile<V>{p,
                                        x + k,
                                        x_stride,
                                        {weight, panel},
                                        size,
                                        k == 0,
                                        last,
                                        column,
                                        totals,
                                        {reinterpret_cast<const char*>(next), step,
                                         static_cast<int64_t>(sizeof(float)) * panel},
                                        ahead_row});
  }
}

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
    alignas(64) float totals[kRowBlock * kWideVectors * kLanes];
    const int64_t end = (p.width + kPanel - 1) / kPanel * kPanel;
    int64_t column = 0;
    for (; column + kWideVectors * kLanes <= end; column += kWideVectors * kLanes) {
      run_columns<kWideRows, kWideVectors>(block, x, x_stride, rows, column, totals);
    }
    for (; column < p.width; column += kTileColumns) {
      run_columns<kTileRows, kTileVectors>(block, x, x_stride, rows, column, totals);
    }
  }
}

}  // namespace groupedmixer::strict::GROUPEDMIXER_VARIANT
