// SPDX-License-Identifier: MIT

#include "mixer/mixer.h"

#include <algorithm>
#include <utility>

#include "common/levels.h"
#include "strict/kv_cache.h"

namespace groupedmixer::mixer {
namespace {

using strict::Activation;
using strict::kernels;
using strict::KvCache;
using strict::LinearParams;
using strict::PackedLinear;

constexpr int64_t kRelative = (2 * strict::kWindow - 1) * (2 * strict::kWindow - 1);

// Rows that go through a block together: their activations, 4 to 6 KiB a row at d = 256, stay in
// the second-level cache, and there are enough of them to hide the reading of the weights.
constexpr int64_t kRowsAtOnce = 96;

// Rows of a power of two of bytes would all fall into the same few cache sets.
constexpr int64_t kPadding = 16;

AlignedVector copied(const float* values, int64_t count) { return {values, values + count}; }

// Of a linear layer with its weight and bias called so.
PackedLinear packed(const WeightMap& weights, const std::string& name, int64_t width,
                    int64_t depth) {
  return strict::pack_linear(weights.get(name + ".weight", {width, depth}),
                             weights.get(name + ".bias", {width}), width, depth);
}

void load_norm(const WeightMap& weights, const std::string& name, int64_t width,
               AlignedVector norm[2]) {
  norm[0] = copied(weights.get(name + ".weight", {width}), width);
  norm[1] = copied(weights.get(name + ".bias", {width}), width);
}

LinearParams linear_params(const PackedLinear& layer, const float* x, int64_t x_stride, float* out,
                           int64_t out_stride, int64_t rows) {
  return {x,          x_stride, layer.weight.data(), layer.bias.data(), out,
          out_stride, rows,     layer.depth,         layer.width};
}

void add_norm(LinearParams& params, const AlignedVector norm[2], float* normed) {
  params.norm_weight = norm[0].data();
  params.norm_bias = norm[1].data();
  params.normed = normed;
}

void add_residual(LinearParams& params, const float* residual, int64_t stride) {
  params.residual = residual;
  params.residual_stride = stride;
}

// The lattice's cells on an axis: where each begins, and the end.
std::vector<int64_t> cuts(int64_t length, int64_t offset) {
  std::vector<int64_t> cut = {0};
  for (int64_t at = offset > 0 ? offset : strict::kWindow; at < length; at += strict::kWindow) {
    cut.push_back(at);
  }
  cut.push_back(length);
  return cut;
}

}  // namespace

// A member's own memory.
struct Mixer::Scratch {
  float* normed;    // [kRowsAtOnce, d]
  float* qkv;       // [kRowsAtOnce, 3 d + kPadding]; the embedding's input as well
  float* attended;  // [kRowsAtOnce, d]
  float* hidden;    // [kRowsAtOnce, hidden_size]; what the lrp layer gives as well
  float* kernel;    // of an attention kernel
};

Mixer::Mixer(const WeightMap& weights, const std::string& prefix, MixerSizes sizes)
    : sizes_(std::move(sizes)) {
  const int64_t d = sizes_.width, c = sizes_.channels, slices = sizes_.slices;
  const int64_t groups = sizes_.groups(), heads = sizes_.heads();
  weights_.start = copied(weights.get(prefix + "start", {c}), c);
  const float* embed_y = weights.get(prefix + "embed_y", {slices, d, c});
  const float* embed_hyper = weights.get(prefix + "embed_hyper", {slices, d, d});
  weights_.embed_bias = copied(weights.get(prefix + "embed_y_bias", {slices, d}), slices * d);
  const float* hyper_bias = weights.get(prefix + "embed_hyper_bias", {slices, d});
  weights_.embed_bias.insert(weights_.embed_bias.end(), hyper_bias, hyper_bias + slices * d);
  weights_.embed_group = copied(weights.get(prefix + "embed_group", {groups, d}), groups * d);
  weights_.embed_level = copied(weights.get(prefix + "embed_level", {kLevels, d}), kLevels * d);
  weights_.embed.resize(static_cast<size_t>(slices * slices));
  const AlignedVector no_bias(static_cast<size_t>(d));
  for (int64_t step = 0; step < groups; ++step) {
    const int64_t before = sizes_.slice_before(step);
    const int64_t now = sizes_.order[static_cast<size_t>(step)].slice;
    PackedLinear& layer = weights_.embed[sizes_.embed_layer(step)];
    if (layer.width > 0) continue;
    AlignedVector both;
    for (int64_t row = 0; row < d; ++row) {
      const float* y = embed_y + (before * d + row) * c;
      const float* hyper = embed_hyper + (now * d + row) * d;
      both.insert(both.end(), y, y + c);
      both.insert(both.end(), hyper, hyper + d);
    }
    layer = strict::pack_linear(both.data(), no_bias.data(), d, c + d);
  }
  for (int64_t i = 0; i < sizes_.layers; ++i) {
    const std::string name = prefix + "blocks." + std::to_string(i) + ".";
    MixerWeights::Block block;
    load_norm(weights, name + "inner.norm", d, block.inner_norm);
    load_norm(weights, name + "cross.norm", d, block.cross_norm);
    load_norm(weights, name + "mlp.0", d, block.mlp_norm);
    block.inner_qkv = packed(weights, name + "inner.qkv", 3 * d, d);
    block.inner_proj = packed(weights, name + "inner.proj", d, d);
    block.cross_qkv = packed(weights, name + "cross.qkv", 3 * d, d);
    block.cross_proj = packed(weights, name + "cross.proj", d, d);
    block.fc1 = packed(weights, name + "mlp.1", 4 * d, d);
    block.fc2 = packed(weights, name + "mlp.3", d, 4 * d);
    block.relative_bias =
        copied(weights.get(name + "inner.relative_bias", {heads, kRelative}), heads * kRelative);
    block.step_bias = copied(weights.get(name + "cross.step_bias", {heads, groups, groups}),
                             heads * groups * groups);
    weights_.blocks.push_back(std::move(block));
  }
  load_norm(weights, prefix + "norm", d, weights_.norm);
  const float* head = weights.get(prefix + "head", {slices, 2 * c, d});
  const float* head_bias = weights.get(prefix + "head_bias", {slices, 2 * c});
  for (int64_t s = 0; s < slices; ++s) {
    const float* weight = head + s * 2 * c * d;
    const float* bias = head_bias + s * 2 * c;
    weights_.mean_head.push_back(strict::pack_linear(weight, bias, c, d));
    weights_.scale_head.push_back(strict::pack_linear(weight + c * d, bias + c, c, d));
  }
  if (sizes_.lrp) {
    const float* lrp = weights.get(prefix + "lrp", {slices, c, d + c});
    const float* lrp_bias = weights.get(prefix + "lrp_bias", {slices, c});
    for (int64_t s = 0; s < slices; ++s) {
      weights_.lrp.push_back(
          strict::pack_linear(lrp + s * c * (d + c), lrp_bias + s * c, c, d + c));
    }
  }
}

int64_t Mixer::hidden_size() const {
  return std::max(4 * sizes_.width, sizes_.channels) + kPadding;
}

int64_t Mixer::scratch_size() const {
  const int64_t d = sizes_.width;
  const int64_t qkv = std::max(3 * d, d + sizes_.channels) + kPadding;
  const int64_t kernel = std::max(strict::kWindowScratch, strict::append_scratch(sizes_.groups()));
  return strict::round_up(kRowsAtOnce * (d + qkv + d + hidden_size()) + kernel, kPadding);
}

int64_t Mixer::tile_bytes(int64_t tokens, int members) const {
  const int64_t d = sizes_.width, c = sizes_.channels;
  const int64_t cache = sizes_.layers * KvCache{sizes_.heads(), sizes_.groups()}.size(tokens) * 2;
  const int64_t rows = tokens * (9 * d + 2 * c + sizes_.groups() * c);
  return cache + 4 * (rows + members * (scratch_size() + d));
}

TileState Mixer::make_tile(Arena& arena, int64_t height, int64_t width, int members) const {
  const int64_t d = sizes_.width, c = sizes_.channels, tokens = height * width;
  TileState tile{};
  tile.height = height;
  tile.width = width;
  tile.tokens = tokens;
  tile.y_hat = arena.take<float>(sizes_.groups() * tokens * c);
  tile.mean = arena.take<float>(tokens * c);
  tile.raw_scale = arena.take<float>(tokens * c);
  tile.x = arena.take<float>(tokens * d);
  for (float*& qkv : tile.qkv) qkv = arena.take<float>(tokens * 3 * d);
  tile.attended = arena.take<float>(tokens * d);
  tile.features = arena.take<float>(tokens * d);
  tile.embedding_bias = arena.take<float>(members * d);
  tile.scratch = arena.take<float>(members * scratch_size());
  tile.cache_size = KvCache{sizes_.heads(), sizes_.groups()}.size(tokens);
  tile.cache = arena.take<uint16_t>(sizes_.layers * tile.cache_size);
  for (int lattice = 0; lattice < 2; ++lattice) {
    const int64_t offset = lattice * strict::kWindow / 2;
    const std::vector<int64_t> tops = cuts(height, offset), lefts = cuts(width, offset);
    for (size_t i = 0; i + 1 < tops.size(); ++i) {
      for (size_t j = 0; j + 1 < lefts.size(); ++j) {
        tile.cells[lattice].push_back(
            {tops[i], lefts[j], tops[i + 1] - tops[i], lefts[j + 1] - lefts[j]});
      }
    }
  }
  return tile;
}

void Mixer::level_embedding(int64_t quality, float* out) const {
  interpolate_levels(weights_.embed_level.data(), sizes_.width, quality, out);
}

void Mixer::group_embedding(int64_t step, float* out) const {
  const int64_t d = sizes_.width, slice = sizes_.order[static_cast<size_t>(step)].slice;
  const float* y = weights_.embed_bias.data() + sizes_.slice_before(step) * d;
  const float* hyper = weights_.embed_bias.data() + (sizes_.slices + slice) * d;
  const float* group = weights_.embed_group.data() + step * d;
  for (int64_t i = 0; i < d; ++i) out[i] = (y[i] + hyper[i]) + group[i];
}

Member::Range Mixer::rows(const Member& member, const TileState& tile) const {
  return member.share(tile.tokens, strict::kTokenBlock);
}

Mixer::Scratch Mixer::scratch_of(const Member& member, const TileState& tile) const {
  const int64_t d = sizes_.width;
  float* next = tile.scratch + member.index() * scratch_size();
  const auto take = [&next](int64_t count) { return std::exchange(next, next + count); };
  Scratch scratch{};
  scratch.normed = take(kRowsAtOnce * d);
  scratch.qkv = take(kRowsAtOnce * (std::max(3 * d, d + sizes_.channels) + kPadding));
  scratch.attended = take(kRowsAtOnce * d);
  scratch.hidden = take(kRowsAtOnce * hidden_size());
  scratch.kernel = next;
  return scratch;
}

void Mixer::embed(const TileState& tile, int64_t step, const float* bias, int64_t row, int64_t rows,
                  const Scratch& scratch) const {
  const int64_t d = sizes_.width, c = sizes_.channels, depth = c + d;
  const Group& group = sizes_.order[static_cast<size_t>(step)];
  const float* before = step == 0 ? nullptr : tile.y_hat + (step - 1) * tile.tokens * c;
  float* both = scratch.qkv;  // [rows, depth]
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t token = row + i;
    const int64_t y = token / tile.width * sizes_.patch_h + group.row_phase;
    const int64_t x = token % tile.width * sizes_.patch_w + group.column_phase;
    const float* psi = tile.psi + (y * tile.width * sizes_.patch_w + x) * d;
    float* out = both + i * depth;
    kernels().compand({before == nullptr ? weights_.start.data() : before + token * c, out, c});
    std::copy(psi, psi + d, out + c);
  }
  const PackedLinear& layer = weights_.embed[sizes_.embed_layer(step)];
  LinearParams p = linear_params(layer, both, depth, tile.x + row * d, d, rows);
  p.bias = bias;
  kernels().linear(p);
}

void Mixer::attend_inner(const Member& member, const TileState& tile,
                         const MixerWeights::Block& block, int lattice, const float* qkv) const {
  const Member::Range own = rows(member, tile);
  const Scratch scratch = scratch_of(member, tile);
  for (const TileState::Cell& cell : tile.cells[lattice]) {
    // A cell's tokens in raster order are in raster order of the grid too: the member's are a
    // stretch.
    const auto tokens_before = [&](int64_t position) {
      int64_t count = 0;
      for (int64_t row = cell.top; row < cell.top + cell.rows; ++row) {
        count += std::clamp<int64_t>(position - (row * tile.width + cell.left), 0, cell.columns);
      }
      return count;
    };
    const int64_t begin = tokens_before(own.begin), end = tokens_before(own.end);
    if (begin == end) continue;
    for (int64_t head = 0; head < sizes_.heads(); ++head) {
      kernels().window_attention({qkv, tile.width, sizes_.heads(), head, cell.top, cell.left,
                                  cell.rows, cell.columns, begin, end, block.relative_bias.data(),
                                  tile.attended, scratch.kernel});
    }
  }
}

void Mixer::run_rows(const TileState& tile, int64_t layer, int64_t step, int64_t row, int64_t rows,
                     const Scratch& scratch) const {
  const MixerWeights::Block& block = weights_.blocks[static_cast<size_t>(layer)];
  const int64_t d = sizes_.width, qkv_stride = 3 * d + kPadding, hidden_stride = 4 * d + kPadding;
  float* x = tile.x + row * d;

  LinearParams p = linear_params(block.inner_proj, tile.attended + row * d, d, x, d, rows);
  add_residual(p, x, d);
  kernels().linear(p);

  p = linear_params(block.cross_qkv, x, d, scratch.qkv, qkv_stride, rows);
  add_norm(p, block.cross_norm, scratch.normed);
  kernels().linear(p);
  const KvCache layout{sizes_.heads(), sizes_.groups()};
  for (int64_t i = 0; i < rows; i += strict::kTokenBlock) {
    uint16_t* cache = tile.cache + layer * tile.cache_size +
                      (row + i) / strict::kTokenBlock * layout.block_size();
    kernels().append_attention({scratch.qkv + i * qkv_stride, qkv_stride, cache,
                                block.step_bias.data(), scratch.attended + i * d, d,
                                std::min(strict::kTokenBlock, rows - i), sizes_.heads(), step,
                                sizes_.groups(), scratch.kernel});
  }
  p = linear_params(block.cross_proj, scratch.attended, d, x, d, rows);
  add_residual(p, x, d);
  kernels().linear(p);

  p = linear_params(block.fc1, x, d, scratch.hidden, hidden_stride, rows);
  add_norm(p, block.mlp_norm, scratch.normed);
  p.activation = Activation::kGelu;
  kernels().linear(p);
  p = linear_params(block.fc2, scratch.hidden, hidden_stride, x, d, rows);
  add_residual(p, x, d);
  kernels().linear(p);
}

void Mixer::predict(const Member& member, TileState& tile, int64_t step) const {
  const int64_t d = sizes_.width, c = sizes_.channels;
  const size_t slice = static_cast<size_t>(sizes_.order[static_cast<size_t>(step)].slice);
  const Scratch scratch = scratch_of(member, tile);
  const Member::Range own = rows(member, tile);
  const auto for_blocks = [&](const auto& body) {
    for (int64_t row = own.begin; row < own.end; row += kRowsAtOnce) {
      body(row, std::min(kRowsAtOnce, own.end - row));
    }
  };
  const auto qkv_of = [&](int64_t layer) { return tile.qkv[(step * sizes_.layers + layer) % 2]; };
  const auto inner_qkv = [&](int64_t layer, int64_t row, int64_t rows) {
    const MixerWeights::Block& block = weights_.blocks[static_cast<size_t>(layer)];
    LinearParams p = linear_params(block.inner_qkv, tile.x + row * d, d,
                                   qkv_of(layer) + row * 3 * d, 3 * d, rows);
    add_norm(p, block.inner_norm, scratch.normed);
    kernels().linear(p);
  };

  float* bias = tile.embedding_bias + member.index() * d;
  group_embedding(step, bias);
  for (int64_t i = 0; i < d; ++i) bias[i] = bias[i] + tile.level[i];
  for_blocks([&](int64_t row, int64_t rows) {
    embed(tile, step, bias, row, rows, scratch);
    inner_qkv(0, row, rows);
  });
  for (int64_t layer = 0; layer < sizes_.layers; ++layer) {
    member.barrier();
    attend_inner(member, tile, weights_.blocks[static_cast<size_t>(layer)],
                 static_cast<int>(layer % 2), qkv_of(layer));
    for_blocks([&](int64_t row, int64_t rows) {
      run_rows(tile, layer, step, row, rows, scratch);
      if (layer + 1 < sizes_.layers) {
        inner_qkv(layer + 1, row, rows);
        return;
      }
      float* features = tile.features + row * d;
      kernels().norm({tile.x + row * d, d, weights_.norm[0].data(), weights_.norm[1].data(),
                      features, d, rows, d});
      kernels().linear(
          linear_params(weights_.mean_head[slice], features, d, tile.mean + row * c, c, rows));
      kernels().linear(linear_params(weights_.scale_head[slice], features, d,
                                     tile.raw_scale + row * c, c, rows));
    });
  }
}

void Mixer::correct(const Member& member, TileState& tile, int64_t step) const {
  if (!sizes_.lrp) return;
  const int64_t d = sizes_.width, c = sizes_.channels, depth = d + c;
  const size_t slice = static_cast<size_t>(sizes_.order[static_cast<size_t>(step)].slice);
  const Scratch scratch = scratch_of(member, tile);
  const Member::Range own = rows(member, tile);
  for (int64_t row = own.begin; row < own.end; row += kRowsAtOnce) {
    const int64_t rows = std::min(kRowsAtOnce, own.end - row);
    float* y_hat = tile.y_hat + (step * tile.tokens + row) * c;
    for (int64_t i = 0; i < rows; ++i) {
      float* both = scratch.qkv + i * depth;
      const float* features = tile.features + (row + i) * d;
      std::copy(features, features + d, both);
      kernels().compand({y_hat + i * c, both + d, c});
    }
    kernels().linear(
        linear_params(weights_.lrp[slice], scratch.qkv, depth, scratch.hidden, c, rows));
    kernels().half_tanh({scratch.hidden, y_hat, rows * c});
  }
}

}  // namespace groupedmixer::mixer
