// SPDX-License-Identifier: MIT
//
// For .cu files: what launchers share. Knows the CUDA runtime, not torch. The runtime is linked
// statically and keeps its own error state, so launches are checked with it and not with torch's.

#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace groupedmixer {

inline void check_cuda(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
  }
}

// Blocks for a grid-stride loop over `count` elements, one a thread as long as that is sensible.
inline unsigned int grid_size(int64_t count, int block_size) {
  constexpr int64_t kMaxBlocks = 4096;
  const int64_t blocks = (count + block_size - 1) / block_size;
  return static_cast<unsigned int>(blocks < kMaxBlocks ? blocks : kMaxBlocks);
}

}  // namespace groupedmixer
