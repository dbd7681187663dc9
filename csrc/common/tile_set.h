// SPDX-License-Identifier: MIT
//
// Tiles that go through a GPU's kernels side by side, so that small tiles fill it too. Kernels take
// a set by value. Arrays over tokens hold the tiles one after another, each in raster order of its
// group grid; a tile begins at a multiple of 16 tokens (a block of the context cache), and what
// lies between two tiles is computed like everything else and means nothing.

#pragma once

#include <cstdint>

namespace groupedmixer {

struct TileSpan {
  int32_t first;  // token
  int32_t height, width;

  constexpr int32_t tokens() const { return height * width; }
};

struct TileSet {
  static constexpr int kMost = 32;
  static constexpr int32_t kAlignment = 16;

  int32_t count = 0;
  int32_t tokens = 0;  // of all tiles and between them, a multiple of kAlignment
  TileSpan tiles[kMost] = {};

  // Adds a tile behind the last one.
  void add(int32_t height, int32_t width) {
    tiles[count++] = {tokens, height, width};
    tokens += (height * width + kAlignment - 1) / kAlignment * kAlignment;
  }

  // Which tile a token belongs to, or count: none.
  constexpr int32_t tile_of(int32_t token) const {
    for (int32_t i = 0; i < count; ++i) {
      if (token < tiles[i].first) return count;
      if (token < tiles[i].first + tiles[i].tokens()) return i;
    }
    return count;
  }
};

}  // namespace groupedmixer
