// SPDX-License-Identifier: MIT
//
// The entropy model of docs/numerics.md, section 5: one step predicts one group of a tile.
//
//   - A tile's state is memory of the caller's; the weights are read-only and shared by all tiles.
//   - All members of a team call the same functions in the same order. A member owns the tokens of
//     rows(). Only inner-group attention reads what others own, their keys and values: a block has
//     one barrier, behind which every member attends for its own tokens.
//   - Keys and values of blocks alternate between two buffers, counted over steps and layers: a
//     buffer is overwritten only behind a barrier that all its readers have passed.
//   - What a member wrote of its tokens it may read at once; others after a barrier.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/aligned.h"
#include "common/arena.h"
#include "common/team.h"
#include "common/weight_map.h"
#include "strict/packed.h"

namespace groupedmixer::mixer {

struct Group {
  int64_t slice, row_phase, column_phase;
};

struct MixerSizes {
  int64_t slices;    // k_c
  int64_t patch_h;   // k_h
  int64_t patch_w;   // k_w
  int64_t channels;  // of a slice, M / k_c
  int64_t width;     // d
  int64_t layers;    // L
  bool lrp;
  std::vector<Group> order;  // G groups

  int64_t groups() const { return static_cast<int64_t>(order.size()); }
  int64_t heads() const { return width / strict::kHeadDim; }
  // Of the group before that of a step; 0 for the first.
  int64_t slice_before(int64_t step) const {
    return step == 0 ? 0 : order[static_cast<size_t>(step) - 1].slice;
  }
  // Of a step in MixerWeights::embed.
  size_t embed_layer(int64_t step) const {
    const int64_t slice = order[static_cast<size_t>(step)].slice;
    return static_cast<size_t>(slice_before(step) * slices + slice);
  }
};

// As kernels read them; those on other devices take them from here.
struct MixerWeights {
  struct Block {
    AlignedVector inner_norm[2], cross_norm[2], mlp_norm[2];  // weight, bias
    strict::PackedLinear inner_qkv, inner_proj, cross_qkv, cross_proj, fc1, fc2;
    AlignedVector relative_bias;  // [heads, 225]
    AlignedVector step_bias;      // [heads, G, G]
  };

  AlignedVector start;        // [C]
  AlignedVector embed_bias;   // [2, slices, d]: of E and of P
  AlignedVector embed_group;  // [G, d]
  AlignedVector embed_level;  // [levels, d]
  // By slice of the group before and slice of the group: [E | P]; only pairs that occur.
  std::vector<strict::PackedLinear> embed;
  std::vector<Block> blocks;
  AlignedVector norm[2];
  std::vector<strict::PackedLinear> mean_head, scale_head, lrp;  // by slice
};

// The state of one tile between steps. Arrays over tokens are in raster order of the group grid.
struct TileState {
  int64_t height, width, tokens;  // of the group grid
  const float* psi;               // [k_h height, k_w width, d]
  const float* level;             // [d], e_level
  float* y_hat;                   // [G, tokens, C]; groups before the current one are decoded
  float* mean;                    // [tokens, C] of the current group
  float* raw_scale;               // [tokens, C]

  float* x;               // [tokens, d]
  float* qkv[2];          // [tokens, 3 d], inner-group; of every other block
  float* attended;        // [tokens, d], inner-group
  float* features;        // [tokens, d]
  float* embedding_bias;  // [members, d]
  float* scratch;         // [members, scratch_size]
  uint16_t* cache;        // [layers, cache_size]
  int64_t cache_size;
  struct Cell {
    int64_t top, left, rows, columns;
  };
  std::vector<Cell> cells[2];  // of the lattices of even and of odd blocks
};

class Mixer {
 public:
  // Throws std::invalid_argument where a weight is missing or of another shape.
  Mixer(const WeightMap& weights, const std::string& prefix, MixerSizes sizes);

  const MixerSizes& sizes() const { return sizes_; }
  const MixerWeights& weights() const { return weights_; }

  // Memory of a tile, in bytes; most of it is the context cache.
  int64_t tile_bytes(int64_t tokens, int members) const;

  // A tile's state in memory of the arena, for a team of `members`. Leaves psi and level to the
  // caller.
  TileState make_tile(Arena& arena, int64_t height, int64_t width, int members) const;

  // e_level at quality / 256.
  void level_embedding(int64_t quality, float* out) const;  // [d]

  // The bias of a step's embedding without e_level: (bE + bP) + e_group.
  void group_embedding(int64_t step, float* out) const;  // [d]

  // The tokens that a member owns in all steps.
  Member::Range rows(const Member& member, const TileState& tile) const;

  // Predicts mean and raw_scale of group `step` for all rows, and appends to the context cache.
  void predict(const Member& member, TileState& tile, int64_t step) const;

  // Latent residual prediction of the member's rows of y_hat[step], in place; nothing without it.
  void correct(const Member& member, TileState& tile, int64_t step) const;

 private:
  struct Scratch;

  Scratch scratch_of(const Member& member, const TileState& tile) const;
  int64_t scratch_size() const;
  int64_t hidden_size() const;  // of a row
  void embed(const TileState& tile, int64_t step, const float* bias, int64_t row, int64_t rows,
             const Scratch& scratch) const;
  void attend_inner(const Member& member, const TileState& tile, const MixerWeights::Block& block,
                    int lattice, const float* qkv) const;
  void run_rows(const TileState& tile, int64_t layer, int64_t step, int64_t row, int64_t rows,
                const Scratch& scratch) const;

  MixerSizes sizes_;
  MixerWeights weights_;
};

}  // namespace groupedmixer::mixer
