// SPDX-License-Identifier: MIT
//
// For the coder's kernels: which elements of a group are coded. A block goes through a group a
// chunk at a time, and its warps work as on a line: one lists what is coded of a chunk, others do
// what has no order, and the first one codes and hardly waits for memory. Between two barriers
// every warp has another chunk, so what one leaves to the next lies in as many buffers as there are
// stages that touch it.

#pragma once

#include <cstdint>

#include "common/cuda_launch.h"

namespace groupedmixer::entropy {

constexpr int kWarp = 32;
constexpr uint32_t kAllLanes = ~0u;
constexpr int kChunk = 1024;
constexpr int kChunkRows = kChunk / kWarp;

// An element that is coded: its position in the chunk, and its index, both below 2^16.
inline __device__ uint32_t pack_coded(uint32_t position, uint32_t index) {
  return position | index << 16;
}
inline __device__ uint32_t coded_position(uint32_t coded) { return coded & 0xffffu; }
inline __device__ uint32_t coded_index(uint32_t coded) { return coded >> 16; }

// Lists what is not below `skip_below`, in order, and returns how many that are.
// `index_of(position)` is asked for 0 .. count - 1. To be called by a warp.
template <typename IndexOf>
__device__ int list_coded(const IndexOf& index_of, int count, uint32_t skip_below,
                          uint32_t* list) {  // [kChunk], shared
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const uint32_t before = (1u << lane) - 1;
  uint32_t index[kChunkRows];  // all loads are under way before the first is waited for
#pragma unroll
  for (int row = 0; row < kChunkRows; ++row) {
    const int position = row * kWarp + lane;
    index[row] = position < count ? index_of(position) : 0;
  }
  int listed = 0;
#pragma unroll
  for (int row = 0; row < kChunkRows; ++row) {
    const int position = row * kWarp + lane;
    const bool coded = position < count && index[row] >= skip_below;
    const uint32_t coded_lanes = __ballot_sync(kAllLanes, coded);
    if (coded) {
      list[listed + __popc(coded_lanes & before)] =
          pack_coded(static_cast<uint32_t>(position), index[row]);
    }
    listed += __popc(coded_lanes);
  }
  return listed;
}

}  // namespace groupedmixer::entropy
