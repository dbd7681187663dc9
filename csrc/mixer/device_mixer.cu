// SPDX-License-Identifier: MIT

#include <algorithm>
#include <cfloat>

#include "common/cuda_launch.h"
#include "common/float_mode.h"
#include "mixer/device_mixer.h"
#include "strict/cuda.h"
#include "strict/kv_cache.h"
#include "strict/linear_kernel.h"
#include "strict/linear_rows.h"

namespace groupedmixer::mixer {
namespace {

using strict::Activation;
using strict::DeviceLinear;
using strict::KvCache;
using strict::LinearParams;
using strict::LinearShape;
using strict::PackedLinear;
using strict::RowsSink;

// ---- sources and sinks of the layers that are the mixer's own -----------------------------------

// The embedding's input, [compand(y_hat of the group before) | psi]; 0 for rows of no token.
struct EmbedSource {
  const float* before;  // [T, channels]; if !has_before, one row for all tokens
  bool has_before;
  int64_t channels;
  const float* psi;         // [positions, width]
  const int32_t* position;  // [T]
  int64_t phase;            // of the group within a patch, in positions
  int64_t width;

  struct Row {
    int64_t y;    // offset into before
    int64_t psi;  // ... into psi; -1: no token
  };
  struct Column {
    int64_t k;
    bool is_psi;
  };
  __device__ void open(int64_t row, int lane, Row& out) const {
    if (lane != 0) return;
    const int32_t corner = position[row];
    out = {has_before ? row * channels : 0, corner < 0 ? -1 : (corner + phase) * width};
  }
  __device__ Column column(int64_t k) const {
    return k < channels ? Column{k, false} : Column{k - channels, true};
  }
  __device__ float at(const Row& row, const Column& column) const {
    if (row.psi < 0) return 0.0f;
    return column.is_psi ? psi[row.psi + column.k] : strict::compand(before[row.y + column.k]);
  }
};

// Means, and scale indexes in place of raw scales.
struct HeadSink {
  float* mean;       // [T, channels]
  uint8_t* indexes;  // [T, channels]
  int64_t channels;
  int64_t scales;           // column of the first raw scale
  const float* thresholds;  // ascending
  int num_thresholds;
  TileSet set;
  uint32_t* failures;  // [tiles]
  uint32_t failure;

  __device__ void put(int64_t row, int64_t column, float value) const {
    const bool is_mean = column < scales;
    const int64_t channel = is_mean ? column : column - scales;
    if (channel >= channels) return;
    if (!(strict::absolute(value) <= FLT_MAX)) {
      const int32_t tile = set.tile_of(static_cast<int32_t>(row));
      if (tile < set.count) atomicMin(failures + tile, failure);
    }
    if (is_mean) {
      mean[row * channels + channel] = value;
    } else {
      indexes[row * channels + channel] = static_cast<uint8_t>(thresholds_below(value));
    }
  }

 private:
  __device__ int thresholds_below(float raw_scale) const {
    int below = 0, end = num_thresholds;
    while (below < end) {
      const int middle = (below + end) / 2;
      if (thresholds[middle] < raw_scale) {
        below = middle + 1;
      } else {
        end = middle;
      }
    }
    return below;
  }
};

// The input of latent residual prediction, [norm(x) | compand(y_hat)].
struct CorrectionSource {
  strict::NormedSource x;
  const float* y_hat;  // [T, channels]
  int64_t channels;

  struct Row {
    strict::NormedSource::Row x;
    int64_t y_hat;  // offset
  };
  struct Column {
    strict::NormedSource::Column x;
    int64_t y_hat;  // -1: of x
  };
  __device__ void open(int64_t row, int lane, Row& out) const {
    x.open(row, lane, out.x);
    if (lane == 0) out.y_hat = row * channels;
  }
  __device__ Column column(int64_t k) const {
    return k < x.depth ? Column{x.column(k), -1} : Column{{}, k - x.depth};
  }
  __device__ float at(const Row& row, const Column& column) const {
    if (column.y_hat < 0) return x.at(row.x, column.x);
    return strict::compand(y_hat[row.y_hat + column.y_hat]);
  }
};

struct CorrectionSink {
  const float* y_hat;  // [T, channels]
  float* corrected;    // [T, channels], not y_hat: blocks that share a row read all of it
  int64_t channels;

  __device__ void put(int64_t row, int64_t column, float value) const {
    const int64_t at = row * channels + column;
    corrected[at] = strict::fused(strict::hyperbolic_tangent(value), 0.5f, y_hat[at]);
  }
};

// ---- embeddings ---------------------------------------------------------------------------------

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    embedding_bias_kernel(const float* group_embedding,  // [G, d]
                          const float* level,            // [d]
                          int64_t count, int64_t width,
                          float* out) {  // [G, d]
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) out[i] = group_embedding[i] + level[i % width];
}

// ---- weights ------------------------------------------------------------------------------------

// Both layers as one: the second one's columns begin at a panel.
PackedLinear side_by_side(const PackedLinear& a, const PackedLinear& b) {
  PackedLinear both = a;
  both.width = strict::round_up(a.width, strict::kPanel) + b.width;
  both.weight.insert(both.weight.end(), b.weight.begin(), b.weight.end());
  both.bias.insert(both.bias.end(), b.bias.begin(), b.bias.end());
  return both;
}

std::vector<float> ascending(const AlignedVector& thresholds) {
  std::vector<float> sorted;
  for (const float threshold : thresholds) {
    if (threshold == threshold) sorted.push_back(threshold);  // nothing is above the others
  }
  std::sort(sorted.begin(), sorted.end());
  return sorted;
}

std::vector<float> group_embeddings(const Mixer& mixer) {
  const ScopedFloatMode mode;
  const MixerSizes& sizes = mixer.sizes();
  std::vector<float> all(static_cast<size_t>(sizes.groups() * sizes.width));
  for (int64_t step = 0; step < sizes.groups(); ++step) {
    mixer.group_embedding(step, all.data() + step * sizes.width);
  }
  return all;
}

LinearShape shape_of(const DeviceLinear& layer, int64_t rows) {
  return {rows, layer.depth, layer.width, layer.weight.data(), layer.bias.data()};
}

LinearParams linear_params(const DeviceLinear& layer, const float* x, float* out, int64_t rows) {
  return {x,           layer.depth, layer.weight.data(), layer.bias.data(), out,
          layer.width, rows,        layer.depth,         layer.width};
}

}  // namespace

DeviceMixer::DeviceMixer(const Mixer& mixer, const AlignedVector& thresholds)
    : sizes_(mixer.sizes()) {
  const MixerWeights& weights = mixer.weights();
  const auto norm_of = [](const AlignedVector norm[2]) {
    return Norm{DeviceArray<float>(norm[0]), DeviceArray<float>(norm[1])};
  };
  start_ = DeviceArray<float>(weights.start);
  group_embedding_ = DeviceArray<float>(group_embeddings(mixer));
  for (const PackedLinear& layer : weights.embed) embed_.emplace_back(layer);
  for (const MixerWeights::Block& block : weights.blocks) {
    blocks_.push_back({norm_of(block.inner_norm), norm_of(block.cross_norm),
                       norm_of(block.mlp_norm), DeviceLinear(block.inner_qkv),
                       DeviceLinear(block.inner_proj), DeviceLinear(block.cross_qkv),
                       DeviceLinear(block.cross_proj), DeviceLinear(block.fc1),
                       DeviceLinear(block.fc2), DeviceArray<float>(block.relative_bias),
                       DeviceArray<float>(block.step_bias)});
  }
  norm_ = norm_of(weights.norm);
  for (size_t slice = 0; slice < weights.mean_head.size(); ++slice) {
    head_.emplace_back(side_by_side(weights.mean_head[slice], weights.scale_head[slice]));
  }
  for (const PackedLinear& layer : weights.lrp) lrp_.emplace_back(layer);
  const std::vector<float> sorted = ascending(thresholds);
  thresholds_ = DeviceArray<float>(sorted);
  num_thresholds_ = static_cast<int64_t>(sorted.size());
}

DeviceTiles DeviceMixer::make_tiles(const TileSet& set, DeviceLayout& layout) const {
  const int64_t d = sizes_.width, c = sizes_.channels, tokens = set.tokens;
  DeviceTiles state{};
  state.set = set;
  state.y_hat = layout.take<float>(sizes_.groups() * tokens * c);
  state.mean = layout.take<float>(tokens * c);
  if (sizes_.lrp) state.uncorrected = layout.take<float>(tokens * c);
  state.embedding_bias = layout.take<float>(sizes_.groups() * d);
  state.x = layout.take<float>(tokens * d);
  state.qkv = layout.take<float>(tokens * 3 * d);
  state.attended = layout.take<float>(tokens * d);
  state.hidden = layout.take<float>(tokens * 4 * d);
  state.cache_size = KvCache{sizes_.heads(), sizes_.groups()}.size(tokens);
  state.cache = layout.take<uint16_t>(sizes_.layers * state.cache_size);
  return state;
}

void DeviceMixer::prepare(const DeviceTiles& state, void* stream) const {
  const int64_t count = sizes_.groups() * sizes_.width;
  const dim3 grid(static_cast<unsigned>((count + kThreads - 1) / kThreads));
  launch("embedding_bias_kernel", embedding_bias_kernel, grid, kThreads, 0, stream,
         group_embedding_.data(), state.level, count, sizes_.width, state.embedding_bias);
}

void DeviceMixer::embed(const DeviceTiles& state, int64_t step, void* stream) const {
  const int64_t d = sizes_.width, c = sizes_.channels, tokens = state.set.tokens;
  const Group& group = sizes_.order[static_cast<size_t>(step)];
  LinearShape shape = shape_of(embed_[sizes_.embed_layer(step)], tokens);
  shape.bias = state.embedding_bias + step * d;
  const EmbedSource source{step == 0 ? start_.data() : state.y_hat + (step - 1) * tokens * c,
                           step != 0,
                           c,
                           state.psi,
                           state.position,
                           group.row_phase * state.latent_width + group.column_phase,
                           d};
  strict::launch_linear_kernel("embed", shape, source,
                               RowsSink{state.x, d, Activation::kNone, nullptr, 0}, stream);
}

void DeviceMixer::run_block(const DeviceTiles& state, size_t layer, int64_t step,
                            void* stream) const {
  const Block& block = blocks_[layer];
  const int64_t d = sizes_.width, tokens = state.set.tokens;
  const auto add_norm = [](LinearParams& params, const Norm& norm) {
    params.norm_weight = norm.weight.data();
    params.norm_bias = norm.bias.data();
  };
  const auto add_to_x = [&](LinearParams& params) {
    params.residual = state.x;
    params.residual_stride = d;
  };

  LinearParams p = linear_params(block.inner_qkv, state.x, state.qkv, tokens);
  add_norm(p, block.inner_norm);
  strict::launch_linear(p, stream);
  strict::launch_window_attention({state.qkv, state.set, sizes_.heads(), layer % 2 != 0,
                                   block.relative_bias.data(), state.attended},
                                  stream);
  p = linear_params(block.inner_proj, state.attended, state.x, tokens);
  add_to_x(p);
  strict::launch_linear(p, stream);

  strict::launch_cross_attention(
      {state.x, block.cross_norm.weight.data(), block.cross_norm.bias.data(),
       block.cross_qkv.weight.data(), block.cross_qkv.bias.data(),
       state.cache + static_cast<int64_t>(layer) * state.cache_size, block.step_bias.data(),
       state.attended, tokens, sizes_.heads(), step, sizes_.groups()},
      stream);
  p = linear_params(block.cross_proj, state.attended, state.x, tokens);
  add_to_x(p);
  strict::launch_linear(p, stream);

  p = linear_params(block.fc1, state.x, state.hidden, tokens);
  add_norm(p, block.mlp_norm);
  p.activation = Activation::kGelu;
  strict::launch_linear(p, stream);
  p = linear_params(block.fc2, state.hidden, state.x, tokens);
  add_to_x(p);
  strict::launch_linear(p, stream);
}

void DeviceMixer::predict(const DeviceTiles& state, int64_t step, uint8_t* indexes,
                          void* stream) const {
  const int64_t d = sizes_.width, c = sizes_.channels;
  embed(state, step, stream);
  for (size_t layer = 0; layer < blocks_.size(); ++layer) run_block(state, layer, step, stream);
  const auto slice = static_cast<size_t>(sizes_.order[static_cast<size_t>(step)].slice);
  const strict::NormedSource features{state.x, d, d, norm_.weight.data(), norm_.bias.data()};
  const HeadSink sink{state.mean,
                      indexes,
                      c,
                      strict::round_up(c, strict::kPanel),
                      thresholds_.data(),
                      static_cast<int>(num_thresholds_),
                      state.set,
                      state.failures,
                      prediction_failure(step)};
  strict::launch_linear_kernel("head", shape_of(head_[slice], state.set.tokens), features, sink,
                               stream);
}

float* DeviceMixer::decoded(const DeviceTiles& state, int64_t step) const {
  if (sizes_.lrp) return state.uncorrected;
  return state.y_hat + step * state.set.tokens * sizes_.channels;
}

void DeviceMixer::correct(const DeviceTiles& state, int64_t step, void* stream) const {
  if (!sizes_.lrp) return;
  const int64_t d = sizes_.width, c = sizes_.channels, tokens = state.set.tokens;
  const auto slice = static_cast<size_t>(sizes_.order[static_cast<size_t>(step)].slice);
  const CorrectionSource source{
      {state.x, d, d, norm_.weight.data(), norm_.bias.data()}, state.uncorrected, c};
  const CorrectionSink sink{state.uncorrected, state.y_hat + step * tokens * c, c};
  strict::launch_linear_kernel("correct", shape_of(lrp_[slice], tokens), source, sink, stream);
}

}  // namespace groupedmixer::mixer
