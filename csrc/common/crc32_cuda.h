// SPDX-License-Identifier: MIT
//
// Checksums of a latent's tiles on a GPU, as crc32.h computes them on the host.

#pragma once

#include <cstdint>

#include "common/tile_set.h"

namespace groupedmixer {

struct TileChecksumParams {
  const float* y_hat;  // [groups, set.tokens, channels]
  TileSet set;
  int32_t channels;
  int32_t groups;
  uint32_t* checksums;  // [set.count]
};

// For each tile, the CRC-32 of its elements in the order of the array, little-endian and with -0 as
// +0. Enqueues on `stream`, a cudaStream_t; all pointers are device pointers. Throws
// std::invalid_argument for tiles of 2^31 elements or more, std::runtime_error if a launch fails.
void launch_tile_checksums(const TileChecksumParams& params, void* stream);

}  // namespace groupedmixer
